"""What all tabs share: the outputs folder, the queue, the studio; and who is asking."""

import contextlib
import functools
import hashlib
import hmac
import json
import re
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app.inference_session import InferenceSession
from hra_diffusion import library
from hra_diffusion.adapters.adapter_file import AdapterFileError, read_info
from hra_diffusion.errors import UserError
from hra_diffusion.files import write_text
from hra_diffusion.generation.sampling import Settings, complete
from training.data.drafts import Draft
from training.data.photos import MIN_SIDE
from training.runs.queue import Queue

COOKIE = "hra_visitor"
DEVICE_QUEUE = "device"
"""Everything that draws shares one queue of events: one drawing at a time."""
MINE: dict[str, Any] = {"api_visibility": "private"}
"""For events that belong to the page and are no part of its API."""
HIDDEN: dict[str, Any] = {**MINE, "show_progress": "hidden"}
"""For such that are over in a moment, and may refuse (``plainly``)."""
QUIET: dict[str, Any] = {**HIDDEN, "queue": False}
"""For such that only read and show, and refuse nothing: of an event outside the queue no error is ever seen."""


@dataclass(frozen=True)
class AppContext:
    """One outputs folder and one base model at a time, for all visitors."""

    output: Path
    studio: InferenceSession
    bases: tuple[str, ...]

    @property
    def queue(self) -> Queue:
        return Queue(self.output)

    @property
    def side(self) -> int:
        """The side of the base's pictures in pixels; before it is loaded, one that nothing is too small for."""
        return complete(self.studio.pipe, Settings()).width if self.studio.loaded else MIN_SIDE

    def own(self, request: gr.Request) -> Path:
        """The folder of whoever asks: by login, else by the browser's cookie (the guard sees to it that there is one).

        Its name can't be guessed and does not tell the cookie.
        """
        who = f"login {request.username}" if request.username else f"cookie {request.cookies[COOKIE]}"
        return self.output / "visitors" / hmac.new(self.salt, who.encode(), "sha256").hexdigest()[:32]

    @functools.cached_property
    def salt(self) -> bytes:
        """A secret of this outputs folder: without it the folder of a login could be told from its name."""
        file = self.output / ".salt"
        if not (file.is_file() and re.fullmatch(rb"[0-9a-f]{64}", file.read_bytes())):  # none yet, or damaged
            write_text(file, secrets.token_hex(32))
            file.chmod(0o600)
        return bytes.fromhex(file.read_text(encoding="utf-8"))

    def draft(self, request: gr.Request) -> Draft:
        """The subject this visitor is preparing."""
        return Draft(self.own(request) / "draft")

    def adapters(self) -> list[library.SavedAdapter]:
        """All finished adapters."""
        return list(library.list_adapters([self.output]))

    def adapter_choices(self) -> list[tuple[str, str]]:
        """Adapters to draw with, as (label, key): the finished ones, then every checkpoint; damaged ones left out."""
        finished, found = [saved.path for saved in self.adapters()], []
        for path in [*finished, *sorted(self.output.glob("[!.]*/checkpoints/[0-9]*/adapter.safetensors"))]:
            with contextlib.suppress(AdapterFileError):
                found.append((library.display_name(path), self.key(path)))
        return found

    def key(self, path: Path) -> str:
        """How the page names a file of the outputs folder."""
        return path.resolve().relative_to(self.output.resolve()).as_posix()

    def file(self, key: str) -> Path:
        """The adapter file of a key from the page. Raises UserError for anything outside the outputs folder."""
        path, root = (self.output / key).resolve(), self.output.resolve()
        inside = path.is_relative_to(root) and not any(part.startswith(".") for part in path.relative_to(root).parts)
        if not inside or path.suffix != ".safetensors" or not path.is_file():
            raise UserError("this adapter is not there any more; reload the page")
        return path

    def subject_of(self, key: str) -> tuple[str, str]:
        """(subject, class noun) of an adapter: "sks dog", "dog"."""
        try:
            info = read_info(self.file(key))
        except AdapterFileError:
            return "", ""
        return info.subject, info.class_noun


def waiting(studio: InferenceSession) -> str:
    """What a drawing says until its turn comes."""
    return "waiting for the device …" if studio.loaded else "loading the base model …"


class CancellationRegistry:
    """What ends each visitor's drawings, from the moment they are asked for: they may wait long for the device."""

    def __init__(self) -> None:
        self._asked: defaultdict[str, list[threading.Event]] = defaultdict(list)

    def ready(self, request: gr.Request) -> None:
        """A drawing is asked for. Raises UserError while another is wanted."""
        asked = self._asked[str(request.session_hash)]
        if not all(event.is_set() for event in asked):
            raise UserError("your drawing is under way; Stop ends it")
        asked.append(threading.Event())

    def stop(self, request: gr.Request) -> bool:
        """End what is drawn and what waits to be; returns whether there is any."""
        asked = self._asked[str(request.session_hash)]
        for event in asked:
            event.set()
        return bool(asked)

    @contextlib.contextmanager
    def drawing(self, request: gr.Request) -> Iterator[threading.Event]:
        """The turn of the first that was asked for has come; yields what is set when it is to end."""
        asked = self._asked[str(request.session_hash)]
        if not asked:  # through the API
            asked.append(threading.Event())
        try:
            yield asked[0]
        finally:
            asked.pop(0)


def clicked(event: gr.EventData) -> dict[str, str]:
    """What a button in a gr.HTML carries: its data-… (see theme.CLICKS)."""
    return dict(event._data)


def user_errors(function: Callable) -> Callable:
    """Let an event say what a person can put right in a box on the page, without a traceback anywhere."""

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise gr.Error(str(error), duration=12, print_exception=False) from None

    return told


def user_errors_each(function: Callable) -> Callable:
    """``plainly`` for events that yield."""

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            yield from function(*args, **kwargs)
        except UserError as error:
            raise gr.Error(str(error), duration=12, print_exception=False) from None

    return told


def changed(signature: object, before: str | None) -> str | None:
    """The new signature if it differs from what a visitor has seen, else None: what did not change is not sent."""
    now = hashlib.sha256(json.dumps(signature, default=str).encode()).hexdigest()
    return None if now == before else now
