"""The HTTP server of ``hra-diffusion serve``, which answers every request before it stops."""

import socket
import threading

import uvicorn
from fastapi import FastAPI

from app.serving.engine import STOP_SECONDS, Engine

ANSWER_SECONDS = 10
"""How long clients may take to read their answers once the engine has stopped."""


class Server(uvicorn.Server):
    """Serves an application until a signal comes, and then stops its engine, too."""

    def __init__(self, app: FastAPI, engine: Engine):
        seconds = STOP_SECONDS + ANSWER_SECONDS
        super().__init__(
            uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=seconds)
        )
        self.engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what waits, and end the connections once they have their answers."""
        threading.Thread(target=self.engine.stop).start()
        await super().shutdown(sockets)
