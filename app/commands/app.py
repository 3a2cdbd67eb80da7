"""hra-diffusion app: start the web page."""

import argparse
import getpass
from pathlib import Path

from app.commands.jobs import add_jobs, parse_jobs
from app.web import server
from app.web.limits import Limits
from hra_diffusion.errors import UserError
from hra_diffusion.models.noise import PREDICTION_TYPES

OUTPUTS = Path("outputs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUTS,
        metavar="DIR",
        help="folder of all runs and pictures (default outputs)",
    )
    parser.add_argument("--base", nargs="+", default=["toybox"], metavar="BASE", help="base models offered on the "
                        "page: toybox, a diffusers folder, a .safetensors file, a hub id")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the fastest available")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="precision of the base models (default: half precision on CUDA, else float32)",
    )
    parser.add_argument("--prediction-type", choices=PREDICTION_TYPES,
                        help="prediction type of the base models (default: from their files)")  # fmt: skip
    parser.add_argument("--rescale-zero-snr", action=argparse.BooleanOptionalAction,
                        help="whether the base models have zero terminal SNR (default: from their files)")  # fmt: skip
    parser.add_argument("--clip", metavar="CLIP", help="CLIP model that scores comparisons: a folder, a hub "
                        "id, or none (default for toybox: its own; else openai/clip-vit-base-patch32)")  # fmt: skip
    add_jobs(parser)
    safety = parser.add_argument_group("access")
    safety.add_argument(
        "--auth-file", type=Path, metavar="FILE", help="require a login; FILE holds the hashed passwords"
    )
    safety.add_argument("--add-user", metavar="NAME", help="add a login to --auth-file (asks for a password) and exit")
    safety.add_argument(
        "--admin", action="store_true", help="with --add-user: the login sees and changes what belongs to all"
    )
    safety.add_argument("--insecure", action="store_true", help="allow --host without a login")
    safety.add_argument(
        "--share", action="store_true", help="create a public link through Gradio's servers; requires a login"
    )
    quotas = parser.add_argument_group("limits of each login that is no admin, or visitor of --insecure")
    quotas.add_argument("--max-waiting-runs", type=int, default=4, metavar="N", help="runs in the queue (default 4)")
    quotas.add_argument("--max-images-per-hour", type=int, default=200, metavar="N", help="pictures (default 200)")
    quotas.add_argument("--max-gigabytes", type=float, default=20, metavar="N", help="files (default 20)")
    quotas.add_argument("--keep-visitors-days", type=float, default=30, metavar="N",
                        help="delete pictures and drafts after so many days without a visit (default 30)")  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    if arguments.add_user:
        ask_password(arguments)
        return
    if arguments.admin:
        raise UserError("--admin belongs to --add-user NAME")
    check_safety(arguments)
    server.serve(
        arguments.output,
        arguments.base,
        arguments.device,
        arguments.dtype,
        arguments.host,
        arguments.port,
        arguments.auth_file,
        arguments.share,
        clip=arguments.clip,
        prediction_type=arguments.prediction_type,
        rescale_zero_snr=arguments.rescale_zero_snr,
        limits=Limits(arguments.max_waiting_runs, arguments.max_images_per_hour, arguments.max_gigabytes),
        keep_visitors_days=arguments.keep_visitors_days,
        cluster=parse_jobs(arguments),
    )


def check_safety(arguments: argparse.Namespace) -> None:
    """Raise UserError if others could reach the page without a login, unless --insecure is given."""
    if arguments.auth_file:
        from app.web.logins import admins, require_logins

        require_logins(arguments.auth_file)
        if not admins(arguments.auth_file):
            print(
                f"{arguments.auth_file} has no admin, who would see what was made without a login and could change the "
                f"base model; create one: hra-diffusion app --auth-file {arguments.auth_file} --add-user NAME --admin"
            )
    elif arguments.share:
        raise UserError("--share makes the page public: add --auth-file FILE")
    elif arguments.host not in server.LOOPBACK and not arguments.insecure:
        raise UserError(
            f"--host {arguments.host} opens the page to the network: add --auth-file FILE (create logins with "
            "--add-user NAME), or --insecure to allow everyone"
        )


def ask_password(arguments: argparse.Namespace) -> None:
    """Ask for a password twice and store its hash."""
    from app.web.logins import add_user

    if not arguments.auth_file:
        raise UserError("--add-user needs --auth-file FILE, which stores the login")
    password = getpass.getpass(f"password for {arguments.add_user}: ")
    if getpass.getpass("again: ") != password:
        raise UserError("the passwords differ; nothing was changed")
    add_user(arguments.auth_file, arguments.add_user, password, arguments.admin)
    print(f"{arguments.add_user} can log in now{', as an admin' if arguments.admin else ''}")
