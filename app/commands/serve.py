"""hra-diffusion serve: draw pictures with many adapters for other programs, over HTTP in OpenAI's form."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from app.commands.common import OUTPUTS, add_base, load_base
from app.serving import keys
from app.web.server import LOOPBACK
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder

GIGABYTE = 2**30


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
    import uvicorn

    from app.serving.api import create_app

    service = make_service(arguments)
    print(f"hra-diffusion serves at http://{arguments.host}:{arguments.port}/v1", flush=True)
    try:
        uvicorn.run(
            create_app(service), host=arguments.host, port=arguments.port, log_level="warning", server_header=False,
            timeout_graceful_shutdown=30,
        )  # fmt: skip
    finally:
        service.engine.stop()


def add_key(arguments: argparse.Namespace) -> str:
    """Add a key to the file of --keys and return it."""
    if not arguments.keys:
        raise UserError("--add-key needs --keys FILE, which stores the key's hash")
    if arguments.pictures_per_hour < 1 or arguments.max_waiting < 1:
        raise UserError("--pictures-per-hour and --max-waiting must be at least 1")
    return keys.add_key(
        arguments.keys, arguments.add_key, arguments.key_adapters, arguments.pictures_per_hour, arguments.max_waiting
    )


def make_service(arguments: argparse.Namespace) -> Any:
    """Load the base model and return the service of these options. Raises UserError."""
    from app.serving.engine import Engine
    from app.serving.pictures import PictureFolder
    from app.serving.service import Service
    from app.serving.store import AdapterStore
    from hra_diffusion.pipeline import components

    if min(arguments.batch_size, arguments.max_queue) < 1:
        raise UserError("--batch-size and --max-queue must be at least 1")
    ring, folder = keys.KeyRing(arguments.keys), make_folder(arguments.adapters)
    pictures = PictureFolder(arguments.pictures)
    pipe = load_base(arguments)
    store = AdapterStore(folder, components(pipe), int(arguments.adapter_memory * GIGABYTE))
    return Service(Engine(pipe, arguments.batch_size, arguments.max_queue), store, ring, pictures)
