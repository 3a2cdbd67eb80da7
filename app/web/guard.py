"""In front of the page: refuses foreign host names and roundabout addresses, gives each browser its own cookie."""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import cookie_parser

from app.web.context import COOKIE

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
"""Nothing may be loaded from elsewhere. Gradio's own pages need inline scripts and eval."""
FILE_POLICY = "sandbox; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'"
"""For files that visitors made or uploaded: opened by themselves, they are shown and run nothing."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
FILES = ("/gradio_api/file", "/file")
ROUNDABOUT = ("/gradio_api/proxy=", "/proxy=", "/gradio_api/file=http", "/file=http", "/gradio_api/runs", "/monitoring")
"""Gradio's addresses that fetch from elsewhere, or show what others did; nothing here needs them."""


class Guard:
    """ASGI middleware. ``hosts``: the names this server answers to; None for any (then a login protects it)."""

    def __init__(self, app: Any, hosts: frozenset[str] | None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not self._welcome(scope):
            await _refuse(send)
            return
        cookie = None if cookie_parser(_header(scope, b"cookie")).get(COOKIE) else secrets.token_urlsafe(16)
        if cookie:  # known from the very first request on
            before = _header(scope, b"cookie")
            given = f"{before}; {COOKIE}={cookie}" if before else f"{COOKIE}={cookie}"
            others = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
            scope["headers"] = [*others, (b"cookie", given.encode())]
        policy = FILE_POLICY if scope["path"].startswith(FILES) else POLICY
        await self.app(scope, receive, _answering(send, policy, cookie))

    def _welcome(self, scope: Scope) -> bool:
        if any(scope["path"].startswith(start) for start in ROUNDABOUT):
            return False
        host = _header(scope, b"host").rsplit(":", 1)[0] if "]" not in _header(scope, b"host") else "[::1]"
        return self.hosts is None or host.lower() in self.hosts


def _answering(send: Send, policy: str, cookie: str | None) -> Send:
    """``send`` with our headers, and the new visitor's cookie."""

    async def answer(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            ours = HEADERS | {"content-security-policy": policy}
            headers = [*message.get("headers", []), *((k.encode(), v.encode()) for k, v in ours.items())]
            if cookie:
                year = 365 * 24 * 3600
                text = f"{COOKIE}={cookie}; Path=/; HttpOnly; SameSite=Lax; Max-Age={year}"
                headers.append((b"set-cookie", text.encode()))
            message = {**message, "headers": headers}
        await send(message)

    return answer


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


async def _refuse(send: Send) -> None:
    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"not here"})
