"""Events of a training run. The loop emits them; the progress bar, the log and the page are listeners."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter


@dataclass(frozen=True)
class Phase:
    """A phase begins.

    It is "load base", "read photos", "class images", "cache", "train", "validation", "samples" or "scores".
    """

    name: str


@dataclass(frozen=True)
class Notice:
    """A message for the user. Training continues."""

    message: str


@dataclass(frozen=True)
class Plan:
    """Predicted memory and time of a run.

    Attributes:
        memory: peak in bytes.
        phase: the phase with the peak.
        device: the type of the device.
        seconds: the time, or None if it has not been measured on this machine.
        phases: peak of each phase in bytes.
    """

    memory: int
    phase: str
    device: str
    seconds: float | None
    phases: dict[str, int]


@dataclass(frozen=True)
class Captions:
    """The captions for training, by path of the photo.

    Attributes:
        added: paths of captions to which the trigger was added.
        coverage: a line for each subject that says what its photos show.
    """

    captions: dict[str, str]
    added: tuple[str, ...]
    coverage: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """An optimiser step is done.

    Attributes:
        total: number of steps of the run.
        seconds: time of this step; the mean if several losses are read at once.
        norm: norm of the gradients before clipping; 0 with a loss scaler. Earlier versions did not log it.
    """

    step: int
    total: int
    loss: float
    learning_rate: float
    seconds: float
    norm: float = 0.0


@dataclass(frozen=True)
class Validated:
    """The loss of the held-out photo after ``step``, over fixed timesteps and noise."""

    step: int
    loss: float


@dataclass(frozen=True)
class Sample:
    """The sample images of a step are saved. ``pictures``: their paths."""

    step: int
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """Mean CLIP similarity of the sample images of a step to the photos (``subject``) and to their prompts."""

    step: int
    subject: float
    prompt: float


@dataclass(frozen=True)
class Best:
    """The checkpoint that samples and validation losses favour, and the reason for the user."""

    step: int
    reason: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint is saved. ``adapter``: path of its adapter, which is ready for use."""

    step: int
    adapter: str


@dataclass(frozen=True)
class Stopped:
    """The run was stopped after ``step`` and can be resumed."""

    step: int


@dataclass(frozen=True)
class Failed:
    """The run failed. ``reason``: the message of the error."""

    reason: str


@dataclass(frozen=True)
class Finished:
    """The run has finished. ``adapter``: path of the adapter; ``phases``: seconds of each phase."""

    adapter: str
    steps: int
    seconds: float
    phases: dict[str, float]


Event = (
    Phase
    | Plan
    | Captions
    | Notice
    | Step
    | Validated
    | Sample
    | Scored
    | Best
    | Checkpoint
    | Stopped
    | Failed
    | Finished
)
Listener = Callable[[Event], None]


def to_json(event: Event) -> str:
    """Return one line of JSON: the kind of the event, the time in Unix seconds, and its fields."""
    return json.dumps(
        {"event": type(event).__name__.lower(), "time": round(time.time(), 3), **dataclasses.asdict(event)},
        ensure_ascii=False,
    )


def from_json(values: dict[str, Any]) -> Event | None:
    """Return the event that ``to_json`` wrote as a line, parsed as ``LoggedEvent``; None for one of unknown kind."""
    fields = {name: value for name, value in values.items() if name not in ("event", "time")}
    kind = _kinds().get(values["event"])
    return kind.validate_python(fields) if kind else None


class _Logged(BaseModel):
    event: str
    time: float = Field(0.0, ge=0, lt=2**33)


@functools.cache
def _kinds() -> dict[str, TypeAdapter[Any]]:
    return {kind.__name__.lower(): TypeAdapter(kind) for kind in get_args(Event)}


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    kind = _Logged.model_validate(values).event
    if kind in _kinds():
        _kinds()[kind].validate_python(values)
    return values


LoggedEvent = Annotated[dict[str, Any], AfterValidator(_checked)]
"""An event as parsed from a line that ``to_json`` returned. Events of a kind that is not known have any fields."""
