"""What the event handlers of all tabs share: queueing, cancellation, errors."""

import contextlib
import functools
import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from app.inference_session import InferenceSession
from hra_diffusion.errors import UserError

DEVICE_QUEUE = "device"
"""Queue shared by all events that use the device: one at a time."""
MINE: dict[str, Any] = {"api_visibility": "private"}
"""Options of events that are not part of the page's API."""
HIDDEN: dict[str, Any] = {**MINE, "show_progress": "hidden"}
"""Options of short events that may raise UserError."""
QUIET: dict[str, Any] = {**HIDDEN, "queue": False}
"""Options of events that only read and never raise: the browser shows no errors of events outside the queue."""


def waiting_text(session: InferenceSession) -> str:
    """Return the status text of a request that waits for the device."""
    return "Waiting for the device …" if session.loaded else "Loading the base model …"


class CancellationRegistry:
    """Cancellation flags of each visitor's requests, from the click on: a request may wait long for the device."""

    def __init__(self) -> None:
        self._requests: defaultdict[str, list[threading.Event]] = defaultdict(list)

    def register(self, request: gr.Request) -> None:
        """Register a request. Raises UserError while another one of this visitor is active."""
        active = self._requests[str(request.session_hash)]
        if not all(flag.is_set() for flag in active):
            raise UserError("your pictures are already being generated; press Stop to cancel them")
        active.append(threading.Event())

    def cancel(self, request: gr.Request) -> bool:
        """Cancel the visitor's running and waiting requests. Returns whether there are any."""
        active = self._requests[str(request.session_hash)]
        for flag in active:
            flag.set()
        return bool(active)

    @contextlib.contextmanager
    def running(self, request: gr.Request) -> Iterator[threading.Event]:
        """Run the visitor's oldest request; yields its cancellation flag."""
        active = self._requests[str(request.session_hash)]
        if not active:  # called through the API
            active.append(threading.Event())
        try:
            yield active[0]
        finally:
            active.pop(0)


def clicked(event: gr.EventData) -> dict[str, str]:
    """Return the data-… attributes of the clicked button (see ``theme.CLICKS``)."""
    return dict(event._data)


def _as_gradio_error(error: UserError) -> gr.Error:
    return gr.Error(str(error), duration=12, print_exception=False)


def user_errors(function: Callable) -> Callable:
    """Show UserErrors of an event handler as messages on the page, without a traceback."""

    @functools.wraps(function)
    def handler(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise _as_gradio_error(error) from None

    return handler


def user_errors_each(function: Callable) -> Callable:
    """``user_errors`` for generators."""

    @functools.wraps(function)
    def handler(*args: Any, **kwargs: Any) -> Any:
        try:
            yield from function(*args, **kwargs)
        except UserError as error:
            raise _as_gradio_error(error) from None

    return handler


def changed(content: object, previous: str | None) -> str | None:
    """Return the digest of ``content``, or None if it equals ``previous``: unchanged content is not sent again."""
    digest = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
    return None if digest == previous else digest
