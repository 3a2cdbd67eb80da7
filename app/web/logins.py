"""Logins: a file with one name and salted scrypt hash per line, and who is an admin. Passwords are not stored."""

import base64
import contextvars
import hashlib
import hmac
import re
import secrets
import time
import unicodedata
from collections import defaultdict, deque
from pathlib import Path

import anyio
from fastapi import HTTPException

from hra_diffusion.errors import UserError
from hra_diffusion.files import write_private
from hra_diffusion.names import validated_name

N, R, P = 2**15, 8, 1
"""Cost of scrypt: 32 MiB and about 0.1 s per attempt."""
MIN_LENGTH = 8
ADMIN = ":admin"
LOGIN = re.compile(rf"[^:]+:scrypt\$[\w+/=]{{24}}\$[\w+/=]{{88}}(?:{ADMIN})?", re.ASCII)
"""A line of the file: name, 16 bytes of salt and 64 bytes of hash in base64, and ``ADMIN`` for an admin."""


ADDRESS: contextvars.ContextVar[str] = contextvars.ContextVar("address", default="")
"""Address of the client whose request is being answered (see ``guard``)."""
PERIOD, PER_NAME, PER_ADDRESS = 60.0, 10, 20
"""Attempts within these seconds for a name, and from an address."""


def add_user(file: Path, name: str, password: str, admin: bool = False) -> None:
    """Add a login to the file, or replace the one of that name. Only the file's owner can read it.

    ``admin``: whether the login sees and changes what belongs to all.

    Raises UserError for a password that is too short.
    """
    if len(password) < MIN_LENGTH:
        raise UserError(f"the password must have at least {MIN_LENGTH} characters")
    salt = secrets.token_bytes(16)
    logins = _read(file) if file.exists() else {}
    logins[validated_name(name)] = f"scrypt${_text(salt)}${_text(_hash(password, salt))}{ADMIN * admin}"
    write_private(file, "".join(f"{user}:{secret}\n" for user, secret in logins.items()))


def check(file: Path, name: str, password: str) -> bool:
    """Return whether the name and password match a login. Takes equally long for unknown names."""
    secret = _read(file).get(unicodedata.normalize("NFC", name), f"scrypt${_text(bytes(16))}${_text(bytes(64))}")
    _, salt, expected = secret.removesuffix(ADMIN).split("$")
    return hmac.compare_digest(_hash(password, base64.b64decode(salt)), base64.b64decode(expected))


def admins(file: Path) -> set[str]:
    """Return the names of the admins. Damaged lines, and a missing file, have none."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    logins = (line.strip() for line in lines)
    return {line.split(":")[0] for line in logins if line.endswith(ADMIN) and LOGIN.fullmatch(line)}


class LoginCheck:
    """Checks logins for the server, one at a time in a thread: a hash takes a fifth of a second and 32 MiB."""

    def __init__(self, file: Path):
        self.file = file
        self._one = anyio.CapacityLimiter(1)
        self._attempts: defaultdict[str, deque[float]] = defaultdict(deque)

    async def check(self, name: str, password: str) -> bool:
        """Return whether a login is right. Raises HTTPException after too many attempts in a minute."""
        self._count(f"address {ADDRESS.get()}", PER_ADDRESS)
        self._count(f"name {name[:100]}", PER_NAME)
        return await anyio.to_thread.run_sync(check, self.file, name, password, limiter=self._one)

    def _count(self, key: str, limit: int) -> None:
        now = time.monotonic()
        for known, times in list(self._attempts.items()):
            while times and now - times[0] > PERIOD:
                times.popleft()
            if not times:
                del self._attempts[known]
        if len(self._attempts[key]) >= limit:
            raise HTTPException(429, "too many attempts; wait a minute")
        self._attempts[key].append(now)


def require_logins(file: Path) -> None:
    """Check the file. Raises UserError if it has no login or a damaged line."""
    if not file.is_file() or not _read(file):
        raise UserError(f"{file} has no logins; create one: hra-diffusion app --auth-file {file} --add-user NAME")


def _read(file: Path) -> dict[str, str]:
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if bad := next((number for number, line in enumerate(lines, 1) if not LOGIN.fullmatch(line)), None):
        raise UserError(f"{file}, line {bad} is not a login; create one: hra-diffusion app --add-user NAME")
    return dict(line.split(":", 1) for line in lines)


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=N, r=R, p=P, maxmem=64 * 2**20, dklen=64)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
