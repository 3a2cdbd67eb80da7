"""hra-diffusion app: the web page."""

import argparse
import getpass
from pathlib import Path

from app.web import server
from hra_diffusion.errors import UserError
from hra_diffusion.models.noise import PREDICTION_TYPES

OUTPUTS = Path("outputs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="where everything is kept")
    parser.add_argument("--base", nargs="+", default=["toybox"], metavar="BASE", help="base models to choose from on "
                        "the page: toybox, a diffusers folder, a .safetensors file, a hub id")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="the best there is by default")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="precision")
    parser.add_argument("--prediction-type", choices=PREDICTION_TYPES,
                        help="what the UNet of every base predicts (default: as each base says)")  # fmt: skip
    parser.add_argument("--rescale-zero-snr", action=argparse.BooleanOptionalAction,
                        help="whether every base has zero terminal SNR (default: as each base says)")  # fmt: skip
    parser.add_argument("--clip", metavar="CLIP", help="what scores comparisons: a folder, a hub id, or none "
                        "(default: toybox's own, else the usual one)")  # fmt: skip
    safety = parser.add_argument_group("who may use it")
    safety.add_argument("--auth-file", type=Path, metavar="FILE", help="ask for a login; hashed passwords are in FILE")
    safety.add_argument("--add-user", metavar="NAME", help="put a login into --auth-file (asks for a password) and end")
    safety.add_argument("--insecure", action="store_true", help="listen on another address without a login")
    safety.add_argument("--share", action="store_true", help="a public link through Gradio's servers; needs a login")


def run(arguments: argparse.Namespace) -> None:
    if arguments.add_user:
        ask_password(arguments)
        return
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
    )


def check_safety(arguments: argparse.Namespace) -> None:
    """Raises UserError where others could reach the page without a login, unless that was asked for outright."""
    if arguments.auth_file:
        from app.web.logins import require_logins

        require_logins(arguments.auth_file)
    elif arguments.share:
        raise UserError("--share makes the page public: give --auth-file too")
    elif arguments.host not in server.LOOPBACK and not arguments.insecure:
        raise UserError(
            f"--host {arguments.host} lets others on the network in: give --auth-file FILE (logins are made by "
            "--add-user NAME), or --insecure if you mean it"
        )


def ask_password(arguments: argparse.Namespace) -> None:
    """Ask for a password, twice, and keep its hash."""
    from app.web.logins import add_user

    if not arguments.auth_file:
        raise UserError("--add-user needs --auth-file FILE, where the login goes")
    password = getpass.getpass(f"password for {arguments.add_user}: ")
    if getpass.getpass("again: ") != password:
        raise UserError("the two passwords differ; nothing was changed")
    add_user(arguments.auth_file, arguments.add_user, password)
    print(f"{arguments.add_user} can log in now")
