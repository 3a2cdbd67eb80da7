"""The bodies of the page's events, checked before Gradio reads them: it downloads from addresses in them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from app.web.events import SENDER
from hra_diffusion.errors import UserError

MAX_WAITING = 16
"""Events of one visitor that wait in Gradio's queue, which has room for 64."""


class EventBody(BaseModel, extra="ignore", strict=True):
    """What the page's script sends. Other keys of Gradio's API are dropped."""

    data: list[Any] = Field(max_length=1000)
    fn_index: int | None = None
    session_hash: Annotated[str, Field(pattern=r"^[\w-]{1,64}$")] | None = None
    event_data: Any = None
    trigger_id: int | None = None


def checked_body(app: Any, api_name: str, raw: bytes) -> bytes:
    """Return the body of an event for Gradio. Raises UserError for an unknown event or a file that was not uploaded."""
    try:
        body = EventBody.model_validate(json.loads(raw))
    except (ValueError, RecursionError, ValidationError):
        raise UserError("this is not an event of the page") from None
    fns = app.get_blocks().fns
    if body.fn_index is None:
        function = next((fn for fn in fns.values() if fn.api_name == api_name), None)
    else:
        function = fns.get(body.fn_index)
    if function is None or len(body.data) != len(function.inputs):
        raise UserError("the page has changed; reload it")
    uploads = Path(app.uploaded_file_dir).resolve()
    for value in _mappings([body.data, body.event_data]):
        _check_upload(value, uploads)
    for part, value in zip(function.inputs, body.data, strict=True):
        _check_files(getattr(part, "data_model", None), value)
    return json.dumps(body.model_dump(exclude_none=True)).encode()


def _check_files(model: type[BaseModel] | None, value: Any) -> None:
    """Raise UserError unless a value is what a component for files sends."""
    try:
        if model and value is not None:
            model.model_validate(value, context={"validate_meta": True})
    except ValidationError:
        raise UserError("this is not an uploaded file; choose it again") from None


def check_queue(app: Any, sender: str) -> None:
    """Raise UserError if too many of a visitor's events wait in Gradio's queue: it has the same room for all."""
    queues = app.get_blocks()._queue.event_queue_per_concurrency_id.values()
    waiting = sum(event.request.scope.get(SENDER) == sender for queue in queues for event in queue.queue)
    if waiting >= MAX_WAITING:
        raise UserError("too many of your requests are waiting; try again in a moment")


def _mappings(values: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield every JSON object, however deep."""
    rest = values
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            yield value
        rest.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())


def _check_upload(value: dict[str, Any], uploads: Path) -> None:
    """Raise UserError if an object names a file that was not uploaded. Remove its address, which nothing needs."""
    value.pop("url", None)
    if "path" not in value:
        return
    path = value["path"]
    try:
        whole = isinstance(path, str) and Path(path).resolve().is_relative_to(uploads) and Path(path).is_file()
    except (ValueError, OSError, RuntimeError):
        whole = False
    if not whole:
        raise UserError("this file was not uploaded here; choose it again")
