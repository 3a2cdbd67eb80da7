"""The cookie that tells visitors without a login apart. The server makes and signs it."""

import hmac
import secrets
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from app.web.context import COOKIE, AppContext

YEAR = 365 * 24 * 3600


class VisitorCookie:
    """The cookie of one outputs folder. Its name differs between folders: all ports of a host share cookies."""

    def __init__(self, context: AppContext):
        self.context = context
        self.name = f"{COOKIE}_{self._sign('name')[:8]}"

    def read(self, cookies: Mapping[str, str]) -> str | None:
        """Return the visitor of a request, or None for a new one, also if the cookie was not made here.

        Earlier versions did not sign: their cookies count if the visitor has a folder.
        """
        visitor, _, signature = cookies.get(self.name, "").partition(".")
        if visitor and hmac.compare_digest(signature.encode(), self._sign(visitor).encode()):
            return visitor
        earlier: Any = SimpleNamespace(username=None, cookies=cookies)
        if COOKIE in cookies and self.context.visitor_folder(earlier).is_dir():
            return cookies[COOKIE]
        return None

    def new(self) -> tuple[str, str]:
        """Return a new visitor and the value of the Set-Cookie header."""
        visitor = secrets.token_urlsafe(16)
        value = f"{self.name}={visitor}.{self._sign(visitor)}"
        return visitor, f"{value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={YEAR}"

    def _sign(self, text: str) -> str:
        return hmac.new(self.context.salt, b"visitor cookie " + text.encode(), "sha256").hexdigest()
