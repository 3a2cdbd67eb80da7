"""What the event handlers of all tabs share: checked values, messages, options of events."""

import contextlib
import functools
import hashlib
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from markupsafe import escape
from pydantic import TypeAdapter

from app.inference_session import InferenceSession
from app.web.values import Click, adapter_of, validated
from hra_diffusion.errors import UserError

DEVICE_QUEUE = "device"
"""Queue shared by events that write large files from the device: one at a time."""
UPLOAD: dict[str, Any] = {"api_visibility": "private"}
"""Options of events that are not part of the page's API and take uploaded files."""
MINE: dict[str, Any] = {**UPLOAD, "preprocess": False}
"""Options of events that are not part of the page's API. Handlers get values as sent: annotations check them."""
HIDDEN: dict[str, Any] = {**MINE, "show_progress": "hidden"}
"""Options of short events that may raise UserError."""
QUIET: dict[str, Any] = {**HIDDEN, "queue": False}
"""Options of events that only read and never raise: the browser shows no errors of events outside the queue."""
SENDER, REFUSED = "hra_sender", "hra_refused"
"""Keys of a request's ASGI scope: whom it counts for, and whether a handler refused it (see ``guard``)."""


class _Clicked(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        raise UserError("this button is no longer on the page; reload the page")


def clicked(event: gr.EventData) -> Mapping[str, Any]:
    """Return the data-… attributes of the clicked button. Raises UserError for others, also when one is missing."""
    return _Clicked(validated(adapter_of(Click), event._data, "button"))


def named(paths: Iterable[Path], name: str, what: str) -> Path:
    """Return the path of this name. Raises UserError that says what no longer exists."""
    found = next((path for path in paths if path.name == name), None)
    if found is None:
        raise UserError(f"this {what} no longer exists; reload the page")
    return found


def waiting_text(session: InferenceSession, ahead: int) -> str:
    """Return the status text of a request that waits for the device behind ``ahead`` others."""
    if ahead:
        return f"Waiting for the device: {ahead} {'request is' if ahead == 1 else 'requests are'} ahead …"
    return "Waiting for the device …" if session.loaded else "Loading the base model …"


def progress_text(session: InferenceSession, text: str) -> str:
    """Return the status text of a generation: ``text``, or what it waits for."""
    before = session.waits_for
    return f"Waiting until {before} has ended: the device has too little memory for both …" if before else text


def sender(request: gr.Request) -> str:
    """Return whom a request counts for: the login, the browser, or the address of a client without cookies."""
    return request.request.scope[SENDER]  # type: ignore[union-attr]


def say(text: str, warning: bool = False) -> None:
    """Show a message in a corner of the page. Gradio shows messages as HTML."""
    (gr.Warning if warning else gr.Info)(escape(text))


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """Show a UserError as a message on the page, without a traceback."""
    try:
        yield
    except UserError as error:
        if request := LocalContext.request.get(None):
            request.request.scope[REFUSED] = True  # type: ignore[union-attr]
        raise gr.Error(escape(str(error)), duration=12, print_exception=False) from None


def user_errors(function: Callable) -> Callable:
    """Check an event handler's values against its annotations, and show UserErrors as messages on the page.

    Parameters that Gradio fills in, and those annotated as Any, are not checked.
    """
    signature, adapters = inspect.signature(function), _adapters(function)

    def bind(*args: Any, **kwargs: Any) -> inspect.BoundArguments:
        bound = signature.bind(*args, **kwargs)
        for name in adapters.keys() & bound.arguments.keys():
            bound.arguments[name] = validated(adapters[name], bound.arguments[name], name)
        return bound

    @functools.wraps(function)
    def handler(*args: Any, **kwargs: Any) -> Any:
        with _shown():
            bound = bind(*args, **kwargs)
            return function(*bound.args, **bound.kwargs)

    @functools.wraps(function)
    def generator(*args: Any, **kwargs: Any) -> Any:
        with _shown():
            bound = bind(*args, **kwargs)
            yield from function(*bound.args, **bound.kwargs)

    return generator if inspect.isgeneratorfunction(function) else handler


def checked(function: Callable) -> Callable:
    """``user_errors`` for an event outside the queue: only values that the page does not send are refused."""
    handler = user_errors(function)
    handler.quiet = True  # type: ignore[attr-defined]
    return handler


def _adapters(function: Callable) -> dict[str, TypeAdapter]:
    hints, adapters = typing.get_type_hints(function, include_extras=True), {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name, Any)
        if hint is Any or (isinstance(hint, type) and issubclass(hint, gr.Request | gr.EventData)):
            continue
        adapters[name] = TypeAdapter(tuple[hint, ...] if parameter.kind is parameter.VAR_POSITIONAL else hint)  # type: ignore[valid-type]
    return adapters


def changed(content: object, previous: str | None) -> str | None:
    """Return the digest of ``content``, or None if it equals ``previous``: unchanged content is not sent again."""
    digest = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
    return None if digest == previous else digest
