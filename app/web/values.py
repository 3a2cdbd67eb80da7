"""Types of the values that a browser sends, for the annotations of event handlers, and their validation."""

import functools
import re
import typing
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from hra_diffusion.adapters import registry
from hra_diffusion.errors import UserError
from hra_diffusion.generation.schedulers import SCHEDULERS
from hra_diffusion.models.loading import DTYPES
from training.presets import PRESETS

T = TypeVar("T")


def _empty_text(value: Any) -> Any:
    return "" if value is None else value


def _empty_list(value: Any) -> Any:
    return [] if value is None else value


def _one_line(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("has a line break or a control character")
    return text


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("has a NUL character")
    return text


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("is not a number")
    return value


def one_of(names: Collection[str]) -> AfterValidator:
    """Return the check that a text is one of these names."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"is not one of {', '.join(names)}")
        return value

    return AfterValidator(check)


Line = Annotated[str, Field(max_length=1000), BeforeValidator(_empty_text), AfterValidator(_one_line)]
"""A name, key, path or search; None is empty."""
Text = Annotated[str, Field(max_length=20_000), BeforeValidator(_empty_text), AfterValidator(_no_nul)]
"""Text of several lines; None is empty."""
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_number)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Strength = Annotated[Number, Field(ge=-10, le=10)]
Steps = Annotated[Whole, Field(ge=0, le=100)]
DEFAULT_INFO = "0: the base model's default"
"""About a field whose 0 stands for the base model's default."""
Seed = Annotated[Whole, Field(ge=-(2**63), lt=2**63)]
Flag = Annotated[bool, Field(strict=True), BeforeValidator(lambda value: False if value is None else value)]
Keys = Annotated[list[Line], Field(max_length=200), BeforeValidator(_empty_list)]
"""Keys of adapters (see ``AppContext.key``); None is empty."""

Dtype = Annotated[str, one_of(DTYPES)]
Method = Annotated[str, Field(max_length=100), AfterValidator(lambda value: registry.get_method(value) and value)]
Methods = Annotated[list[Method], Field(max_length=100), BeforeValidator(_empty_list)]
Preset = Annotated[str, one_of(PRESETS)]
Scheduler = Annotated[str, one_of(SCHEDULERS)]
Mode = Literal["Form", "YAML"]


class Click(TypedDict, total=False):
    """The data-… attributes of a button (see ``theme.CLICKS``)."""

    do: Line
    base: Line
    file: Line
    key: Line
    of: Line
    run: Line
    text: Line
    at: Annotated[int, Field(ge=0)]
    cell: Annotated[int, Field(ge=0)]
    step: Annotated[int, Field(ge=0)]


class Layer(TypedDict):
    """An uploaded image (see ``event_bodies``)."""

    path: Line


class Painting(TypedDict):
    """What the image editor sends with an event."""

    layers: Annotated[list[Layer], Field(max_length=1)]


adapter_of = functools.cache(TypeAdapter)
"""The validator of a class."""


def validated(adapter: TypeAdapter[T], value: Any, name: str) -> T:
    """Return a value as its type. Raises UserError with the first thing that is wrong."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = " ".join(part.replace("_", " ") for part in (name, *first["loc"]) if isinstance(part, str) and part)
        what = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
        raise UserError(f"{where}: {what}; correct it, or reload the page") from None


def row(model: type[T], values: Sequence[Any]) -> T:
    """Return the values of an event by the names of a class, whose last field takes the rest if it is a tuple.

    Raises UserError for values of other types, or too few.
    """
    names = [*model.__annotations__]
    named: dict[str, Any] = dict(zip(names, values, strict=False))
    if typing.get_origin(model.__annotations__[names[-1]]) is tuple:
        named[names[-1]] = tuple(values[len(names) - 1 :])
    return validated(adapter_of(model), named, "")
