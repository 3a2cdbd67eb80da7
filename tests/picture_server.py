"""A server of pictures for tests: a tiny base model, adapters, HTTP."""

import contextlib
import socket
import threading
import time

from conftest import stir, tiny_pipe

import hra_diffusion as hra
from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.methods import REPRESENTATIVE
from hra_diffusion.pipeline import components

ADAPTERS = {"alice-rex": REPRESENTATIVE[0], "alice-cat": REPRESENTATIVE[1], "bob-cup": REPRESENTATIVE[2]}


def save_adapter(path, method="lora", seed=0, **base):
    """Save an adapter with a strong effect on the tiny base."""
    pipe = tiny_pipe(**base)
    hra.attach(pipe.unet, method, {"rank": 4}, name=path.stem, seed=seed)
    stir(attachment.adapter_parameters(pipe.unet, path.stem).values(), seed, by=3.0)
    hra.save(pipe, path, path.stem, "sks", "dog")
    return path


def make_service(folder, adapters, keys=None, **engine):
    from app.serving.engine import Engine
    from app.serving.keys import KeyRing
    from app.serving.pictures import PictureFolder
    from app.serving.service import Service
    from app.serving.store import AdapterStore

    pipe = tiny_pipe()
    store = AdapterStore(adapters, components(pipe), 2**30)
    return Service(Engine(pipe, **engine), store, KeyRing(keys), PictureFolder(folder / "served"))


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


@contextlib.contextmanager
def served(service):
    """Serve it over HTTP until the block ends; yields the address."""
    import uvicorn

    from app.serving.api import create_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        service.engine.stop()
