"""Middleware in front of the page: checks host names and paths, and gives each browser its own cookie."""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import cookie_parser

from app.web.context import COOKIE
from app.web.pulse import PATH, Pulse

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
"""Content security policy of the page: nothing from other hosts. Gradio's pages need inline scripts and eval."""
FILE_POLICY = "sandbox; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'"
"""Content security policy of files made or uploaded by visitors: opened on their own, they run no scripts."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
FILES = ("/gradio_api/file", "/file")
BLOCKED = ("/gradio_api/proxy=", "/proxy=", "/gradio_api/file=http", "/file=http", "/gradio_api/runs", "/monitoring")
"""Gradio's paths that fetch from other hosts or show other visitors' runs; the page uses none of them."""


class Guard:
    """ASGI middleware that also answers the browsers' questions for changes.

    ``hosts`` are the accepted host names; None accepts any, for servers protected by logins.
    """

    def __init__(self, app: Any, hosts: frozenset[str] | None, pulse: Pulse):
        self.app, self.hosts, self.pulse = app, hosts, pulse

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not self._is_allowed(scope):
            await _refuse(send)
            return
        if scope["path"].endswith(PATH):
            pulse = self.pulse
            await _send_json(send, pulse.answer() if pulse.is_fresh else await run_in_threadpool(pulse.answer))
            return
        cookie = None if cookie_parser(_header(scope, b"cookie")).get(COOKIE) else secrets.token_urlsafe(16)
        if cookie:  # the application sees it from the first request on
            before = _header(scope, b"cookie")
            given = f"{before}; {COOKIE}={cookie}" if before else f"{COOKIE}={cookie}"
            others = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
            scope["headers"] = [*others, (b"cookie", given.encode())]
        policy = FILE_POLICY if scope["path"].startswith(FILES) else POLICY
        await self.app(scope, receive, _with_headers(send, policy, cookie))

    def _is_allowed(self, scope: Scope) -> bool:
        if any(scope["path"].startswith(start) for start in BLOCKED):
            return False
        host = _header(scope, b"host").rsplit(":", 1)[0] if "]" not in _header(scope, b"host") else "[::1]"
        return self.hosts is None or host.lower() in self.hosts


def _with_headers(send: Send, policy: str, cookie: str | None) -> Send:
    """Wrap ``send`` to add the security headers and a new visitor's cookie."""

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


async def _send_json(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Send) -> None:
    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"forbidden"})
