"""The page, really served, for as long as a test needs it."""

import contextlib
import socket
from pathlib import Path


@contextlib.contextmanager
def serving(output: Path, base: Path, **options):
    """The page at its address, stopped when the block ends."""
    from app.page import server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = server.serve(output, [str(base)], "cpu", "float32", port=port, block=False, **options)
    try:
        yield page
    finally:
        page.close()
