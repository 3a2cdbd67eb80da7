"""Middleware in front of the page: who may ask for what, the visitors' cookie, security headers."""

import http
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from app.web import logins
from app.web.context import COOKIE, AppContext
from app.web.event_bodies import check_queue, checked_body
from app.web.events import REFUSED, SENDER
from app.web.pulse import PATH
from app.web.served_files import is_served
from app.web.visitor_cookie import VisitorCookie
from hra_diffusion.errors import UserError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

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
API = "/gradio_api"
FILE = f"{API}/file="
PUBLIC = re.compile(
    rf"/|/login/?|/(assets|static|svelte)/.+|(?:{API})?/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"
    rf"|{API}/startup-events"
)
"""Paths that the login page needs, and the server itself at its start."""
MEMBERS = re.compile(
    rf"/logout|/config/?|{PATH}|{re.escape(FILE)}.+|{API}/(info/?|heartbeat/[\w-]+|queue/(data|status)|upload_progress|app_id"
    rf"|login_check/?|component_server/?|queue/join|(run|api)/\w+/?|call/\w+(/\w+)?/?|upload|cancel|reset/?)",
    re.DOTALL,
)
"""Paths of the page for whoever may use it. All other paths of Gradio are closed."""
EVENTS = re.compile(rf"{API}/(?:queue/join|(?:run|api|call)/(\w+)/?)")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s\[\]:@/\\]+)(?::\d{1,5})?", re.IGNORECASE)
BLOBS = re.compile(rf"{API}/component_server/?")
"""Where Gradio's image editor sends a second copy of what is painted, which Gradio would keep in memory. It is dropped;
the event names an uploaded file."""
MAX_BODY = {"login": 16 * 1024, "other": 2**20}
"""Bytes of a login, and of other requests except uploads, which have a limit of their own."""


class Guard:
    """ASGI middleware that also answers the browsers' questions for changes.

    ``hosts`` are the accepted host names; None accepts any, for servers protected by logins.
    """

    def __init__(self, app: Any, hosts: frozenset[str] | None, context: AppContext):
        self.app, self.hosts, self.context = app, hosts, context
        self.cookie = VisitorCookie(context)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)  # type: ignore[arg-type]
        cookies = cookie_parser(headers.get("cookie", ""))
        user, visitor = _login(scope, cookies), self.cookie.read(cookies)
        known, fresh = (visitor, None) if visitor else self.cookie.new()
        address = (scope.get("client") or ("",))[0]
        scope[SENDER] = f"login {user}" if user else f"cookie {visitor}" if visitor else f"address {address}"
        logins.ADDRESS.set(address)
        send = _with_headers(send, scope, fresh)
        _replace_headers(scope, headers, f"{COOKIE}={known}")
        if status := self._refused(scope, headers, SimpleNamespace(username=user, cookies={COOKIE: known})):
            await _answer(send, status)
            return
        if scope["path"] == PATH:
            pulse = self.context.pulse
            parts = pulse.answer() if pulse.is_fresh else await anyio.to_thread.run_sync(pulse.answer)
            await _send_json(send, 200, parts)
            return
        if BLOBS.fullmatch(scope["path"]):
            await _send_json(send, 200, b"null")
            return
        if scope["method"] == "POST" and scope["path"] != f"{API}/upload":
            if (read := await self._read(scope, receive, send)) is None:
                return
            receive = read
        await self.app(scope, receive, send)

    def _refused(self, scope: Message, headers: Headers, asking: Any) -> int | None:
        """Return the status of a request that is refused. ``asking`` has the visitor's login and cookies."""
        path = scope["path"]
        host = HOST.fullmatch(headers.get("host", ""))
        if not host or (self.hosts is not None and host[1].lower() not in self.hosts):
            return 403
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405
        if not _is_own_origin(scope, headers):
            return 403
        if PUBLIC.fullmatch(path):
            return None
        if not MEMBERS.fullmatch(path):
            return 404
        if asking.username is None and getattr(scope.get("app"), "auth", None) is not None:
            return 401
        if not path.startswith(FILE):
            return None
        own = self.context.visitor_folder(asking)
        return None if is_served(self.context.for_visitor(asking), path.removeprefix(FILE), own) else 403

    async def _read(self, scope: Message, receive: Receive, send: Send) -> Receive | None:
        """Return what the application receives of a checked body, or None if the request has been answered."""
        is_login = scope["path"].startswith("/login")
        body = await _body(receive, MAX_BODY["login" if is_login else "other"])
        if body is None:
            await _answer(send, 413)
            return None
        if event := EVENTS.fullmatch(scope["path"]):
            try:
                body = await anyio.to_thread.run_sync(checked_body, scope["app"], event[1] or "", body)
                check_queue(scope["app"], scope[SENDER])
            except UserError as error:
                await _answer(send, 400, str(error))
                return None
        rest = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
        scope["headers"] = [*rest, (b"content-length", str(len(body)).encode())]
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        return replay


def _login(scope: Message, cookies: dict[str, str]) -> str | None:
    """Return the login of a request, as Gradio finds it."""
    if (app := scope.get("app")) is None:
        return None
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return next((app.tokens[cookies[name]] for name in names if cookies.get(name) in app.tokens), None)


def _is_own_origin(scope: Message, headers: Headers) -> bool:
    """Return whether a request comes from this page, from a program, or opens the page from elsewhere.

    Browsers send Sec-Fetch-Site to this machine and over HTTPS, otherwise at least Origin with what changes something.
    """
    site = headers.get("sec-fetch-site")
    if scope["path"] == "/logout" and headers.get("sec-fetch-dest", "document") != "document":
        return False
    if site is not None:
        opens = scope["method"] == "GET" and scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        return site in ("same-origin", "none") or opens
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def _replace_headers(scope: Message, headers: Headers, cookie: str) -> None:
    """Give the application the visitor's checked cookie, and no Range: Gradio answers it with the request's headers."""
    given = "; ".join(part for part in (headers.get("cookie"), cookie) if part)
    kept = [(key, value) for key, value in scope["headers"] if key not in (b"cookie", b"range")]
    scope["headers"] = [*kept, (b"cookie", given.encode("latin-1"))]


def _with_headers(send: Send, scope: Message, cookie: str | None) -> Send:
    """Wrap ``send`` to add the security headers and a new visitor's cookie, and the status of a refused event."""
    policy = FILE_POLICY if scope["path"].startswith(FILE) else POLICY

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = HEADERS | {"content-security-policy": policy} | ({"set-cookie": cookie} if cookie else {})
            headers = [*message.get("headers", []), *((k.encode(), v.encode()) for k, v in ours.items())]
            status = 400 if scope.get(REFUSED) else message["status"]  # Gradio answers 500 to every exception
            message = {**message, "headers": headers, "status": status}
        await send(message)

    return answer


async def _body(receive: Receive, limit: int) -> bytes | None:
    """Return the body of a request; None if it is longer than ``limit``."""
    body = bytearray()
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not message.get("more_body"):
            break
    return bytes(body)


async def _answer(send: Send, status: int, text: str = "") -> None:
    """Answer a request. The page shows ``detail`` as a message, as HTML: it holds nothing from the request."""
    await _send_json(send, status, json.dumps({"detail": text or http.HTTPStatus(status).phrase}).encode())


async def _send_json(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
