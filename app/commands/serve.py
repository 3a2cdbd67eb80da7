"""hra-diffusion serve: draw pictures with many adapters for other programs, over HTTP in OpenAI's form."""

import argparse
import importlib.util
import socket
from pathlib import Path

from pydantic import ValidationError

from app.commands.common import OUTPUTS, add_base
from app.serving import keys
from app.web.server import LOOPBACK
from hra_diffusion.adapters.registry import explain
from hra_diffusion.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapters", type=Path, default=OUTPUTS, metavar="DIR", help="folder of the adapters, each "
                        "NAME.safetensors or NAME/NAME.safetensors (default outputs)")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port (default 8000)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="pictures in a batch (default 8)")
    parser.add_argument("--max-queue", type=int, default=256, metavar="N", help="pictures that may wait (default 256)")
    parser.add_argument("--adapter-memory", type=float, default=4, metavar="GB", help="memory for prepared adapters; "
                        "the least recently used make room (default 4)")  # fmt: skip
    parser.add_argument("--pictures", type=Path, default=OUTPUTS / "served", metavar="DIR", help="folder of the "
                        "pictures behind addresses, which stay for an hour (default outputs/served)")  # fmt: skip
    access = parser.add_argument_group("access")
    access.add_argument("--keys", type=Path, metavar="FILE", help="require a key; FILE holds their hashes and limits")
    access.add_argument("--add-key", metavar="NAME", help="add a key to --keys, print it and exit")
    access.add_argument("--key-adapters", default="*", metavar="PATTERN", help="with --add-key: the adapters that the "
                        "key sees, such as alice-* (default all)")  # fmt: skip
    access.add_argument("--pictures-per-hour", type=int, default=1000, metavar="N",
                        help="with --add-key: pictures in an hour (default 1000)")  # fmt: skip
    access.add_argument("--max-waiting", type=int, default=32, metavar="N",
                        help="with --add-key: pictures that may wait or be drawn at once (default 32)")  # fmt: skip
    access.add_argument("--insecure", action="store_true", help="allow --host without keys")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.add_key:
        print(add_key(arguments))
        return
    if not (arguments.keys or arguments.insecure or arguments.host in LOOPBACK):
        raise UserError(f"--host {arguments.host} opens the server to the network: add --keys FILE (create keys with "
                        "--add-key NAME), or --insecure to allow everyone")  # fmt: skip
    if importlib.util.find_spec("prometheus_client") is None:
        raise UserError("the server needs prometheus-client: pip install 'hra-diffusion[serve]'")
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from app.serving.api import create_app
    from app.serving.server import Server
    from app.serving.setup import ServerOptions, make_service

    try:
        options = ServerOptions(**{name: getattr(arguments, name) for name in ServerOptions.model_fields})
    except ValidationError as error:
        raise UserError(explain(error)) from None
    with listen(arguments.host, arguments.port) as listening:
        service = make_service(options)
        app = create_app(service)
        if arguments.host in LOOPBACK and not arguments.keys:  # no foreign name may be pointed at this machine
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=sorted(LOOPBACK))
        print(f"hra-diffusion serves at http://{arguments.host}:{arguments.port}/v1", flush=True)
        try:
            Server(app, service.engine).run(sockets=[listening])
        finally:
            service.engine.stop()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at this address. Raises UserError if that is not possible."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError):
        raise UserError(
            f"can't listen on {host}, port {port}: it is in use, or not an address of this machine; choose another "
            "--port or --host"
        ) from None


def add_key(arguments: argparse.Namespace) -> str:
    """Add a key to the file of --keys and return it."""
    if not arguments.keys:
        raise UserError("--add-key needs --keys FILE, which stores the key's hash")
    if arguments.pictures_per_hour < 1 or arguments.max_waiting < 1:
        raise UserError("--pictures-per-hour and --max-waiting must be at least 1")
    return keys.add_key(
        arguments.keys, arguments.add_key, arguments.key_adapters, arguments.pictures_per_hour, arguments.max_waiting
    )
