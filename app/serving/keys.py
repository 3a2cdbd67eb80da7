"""API keys: a JSON file with the name, the hash and the limits of each. The keys themselves are not stored.

A key has 256 random bits, so that one round of SHA-256 protects it; passwords, which people choose, need scrypt
(``app.web.logins``).
"""

import fnmatch
import hashlib
import secrets
import threading
import time
import unicodedata
from collections import defaultdict, deque
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.serving.errors import ApiError
from hra_diffusion.adapters.registry import explain
from hra_diffusion.errors import UserError
from hra_diffusion.files import write_private
from hra_diffusion.names import validated_name

PREFIX = "hra-"
HOUR = 3600.0
BASE = "base"
"""Name of the base model without an adapter, which every key may use."""


class Key(BaseModel):
    """A key of the file: who has it, its hash, and what it may do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    adapters: str = Field("*", description="Pattern of the names of the adapters that the key may see and use.")
    pictures_per_hour: int = Field(1000, ge=1)
    waiting: int = Field(32, ge=1, description="Pictures that may wait or be drawn at once.")

    def may_use(self, model: str) -> bool:
        """Whether the key may use an adapter, or the base model."""
        return model == BASE or fnmatch.fnmatchcase(unicodedata.normalize("NFC", model), self.adapters)


LOCAL = Key.model_construct(name="local", pictures_per_hour=10**9, waiting=10**9)
"""Whoever asks a server without keys."""
_Keys = TypeAdapter(list[Key])


def add_key(file: Path, name: str, adapters: str = "*", pictures_per_hour: int = 1000, waiting: int = 32) -> str:
    """Add a key to the file, or replace the one of that name, and return it: it can't be read again.

    Only the file's owner can read it. Raises UserError for an invalid name or a damaged file.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    added = Key(
        name=validated_name(name), sha256=_hash(secret), adapters=adapters, pictures_per_hour=pictures_per_hour,
        waiting=waiting,
    )  # fmt: skip
    kept = [key for key in (read_keys(file) if file.exists() else []) if key.name != added.name]
    write_private(file, _Keys.dump_json([*kept, added], indent=1).decode() + "\n")
    return secret


def read_keys(file: Path) -> list[Key]:
    """Read the keys of a file. Raises UserError if it is missing or damaged."""
    try:
        return _Keys.validate_json(file.read_bytes())
    except OSError:
        raise UserError(f"{file} has no keys; create one: hra-diffusion serve --keys {file} --add-key NAME") from None
    except ValidationError as error:
        raise UserError(f"{file} is damaged: {explain(error)}; correct it, or create the keys anew") from None


class KeyRing:
    """The keys of a file, which is read again when it has changed: a key that is removed stops working at once.

    ``file``: None lets everyone in, as ``LOCAL``.
    """

    def __init__(self, file: Path | None):
        self.file = file
        self._keys: dict[str, Key] = {}
        self._version: tuple[int, int] | None = None
        if file is not None and not read_keys(file):
            raise UserError(f"{file} has no keys; create one: hra-diffusion serve --keys {file} --add-key NAME")

    def find(self, authorization: str | None) -> Key:
        """Return the key of an Authorization header. Raises ApiError (401) if it is none of the file."""
        if self.file is None:
            return LOCAL
        scheme, _, secret = (authorization or "").partition(" ")
        key = self._current().get(_hash(secret.strip())) if scheme.lower() == "bearer" else None
        if key is None:
            raise ApiError(401, "invalid_api_key", "send a valid key: Authorization: Bearer KEY")
        return key

    def _current(self) -> dict[str, Key]:
        """The keys by hash. While the file is missing or damaged there are none."""
        assert self.file is not None
        try:
            state = self.file.stat()
            version = state.st_mtime_ns, state.st_ino
            if version != self._version:
                self._keys, self._version = {key.sha256: key for key in read_keys(self.file)}, version
        except (OSError, UserError):
            self._keys, self._version = {}, None
        return self._keys


class Usage:
    """Counts the pictures of each key in the last hour, and those that wait or are being drawn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hour: defaultdict[str, deque[float]] = defaultdict(deque)
        self._waiting: defaultdict[str, int] = defaultdict(int)

    def take(self, key: Key, pictures: int) -> None:
        """Count pictures that a key asks for.

        Beyond its limits counts none and raises ApiError: 413 for more pictures than they ever allow at once, or 429.
        """
        if pictures > (most := min(key.waiting, key.pictures_per_hour)):
            raise ApiError(413, "request_too_large", f"this key may ask for at most {most} pictures at once")
        now = time.monotonic()
        with self._lock:
            hour = self._hour[key.name]
            while hour and now - hour[0] >= HOUR:
                hour.popleft()
            if self._waiting[key.name] + pictures > key.waiting:
                raise ApiError(429, "rate_limit_exceeded", f"at most {key.waiting} of your pictures may wait", 2)
            if (excess := len(hour) + pictures - key.pictures_per_hour) > 0:
                seconds = HOUR - (now - hour[excess - 1])  # until so many are no longer of the last hour
                raise ApiError(429, "rate_limit_exceeded", f"at most {key.pictures_per_hour} pictures an hour", seconds)
            self._waiting[key.name] += pictures
            hour.extend([now] * pictures)

    def give_back(self, key: Key, pictures: int) -> None:
        """Count pictures as no longer waiting, however their request ended."""
        with self._lock:
            self._waiting[key.name] -= pictures

    def refund(self, key: Key, pictures: int) -> None:
        """Count pictures as never asked for, since their request was refused."""
        self.give_back(key, pictures)
        with self._lock:
            for _ in range(pictures):
                self._hour[key.name].pop()


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
