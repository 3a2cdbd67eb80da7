"""The adapter methods by name. A new method is one file in ``adapters/methods`` that calls ``register``."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from torch import Generator, Tensor, nn

from hra_diffusion.errors import UserError

Inner = Callable[[Tensor], Tensor]


class MethodConfig(BaseModel):
    """What every method has; a method adds its own fields. Field metadata makes the CLI flags and the web form."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    rank: int = Field(8, ge=1, le=256, description="Rank of the adapter: how much it can learn, and its size.")


LEAST_SCALE = 1e-4
"""The least scale of an output that a low-rank form divides by: what is nearer to 0 counts as up to thrice that."""


class LowRank(NamedTuple):
    """An adapted weight as other tools hold it: ``W′ = diag(scale) (W + up · down)``, without ``scale`` a plain LoRA.

    ``up`` (d_out, k), ``down`` (k, d_in), ``scale`` (d_out,) or None for ones.
    """

    up: Tensor
    down: Tensor
    scale: Tensor | None = None


class AdapterModule(Protocol):
    """One adapter on one frozen weight W (d_out, d_in). Rows are tokens; ``inner`` maps rows (…, d_in) through the
    weight as the adapters before this one left it, without bias. Also an ``nn.Module``."""

    def __call__(self, rows: Tensor, inner: Inner, strength: float = 1.0) -> Tensor:
        """Rows (…, d_in) through the adapted weight: (…, d_out)."""
        ...

    def adapted_weight(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """W′ (d_out, d_in), in the weight's dtype; ``F.linear(rows, W′)`` equals the call."""
        ...

    def low_rank(self, weight: Tensor, strength: float = 1.0) -> LowRank:
        """W′ as an update of W, exactly and in the weight's dtype: how the adapter leaves for other tools."""
        ...


AdapterClass = Callable[[MethodConfig, int, int, Generator], nn.Module]


@dataclass(frozen=True)
class PeftForm:
    """The same method in PEFT: its ``peft_type``, our parameters by PEFT's names, our configuration as PEFT's fields
    and, where PEFT's folders are read as this very method, back."""

    peft_type: str
    parameters: dict[str, str]
    to_peft: Callable[[Any], dict[str, Any]]
    from_peft: Callable[[dict[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Method:
    """A registered method: how to build it, how to show it, what it promises."""

    name: str
    title: str
    summary: str
    paper: str
    config: type[MethodConfig]
    build: AdapterClass
    penalty: Callable[[MethodConfig, Iterable[nn.Module]], Tensor] | None = None
    starts_at_base: Callable[[MethodConfig], bool] = lambda config: True
    peft: PeftForm | None = None

    def parse(self, options: dict | MethodConfig) -> MethodConfig:
        """Options as a validated config of this method.

        Raises ValueError naming the option that is wrong and what is allowed.
        """
        if isinstance(options, MethodConfig):
            if not isinstance(options, self.config):
                raise ValueError(f"{type(options).__name__} is not a configuration of {self.name}")
            return options
        try:
            return self.config.model_validate(options)
        except ValidationError as error:
            raise UserError(f"{self.name}: {explain(error)}") from None


_methods: dict[str, Method] = {}

A = TypeVar("A", bound=type)


def register(name: str, *, config: type[MethodConfig], title: str, summary: str, paper: str, **promises) -> Callable:
    """Class decorator: make an adapter class known as ``name``. Raises ValueError on a name already taken."""

    def add(adapter: A) -> A:
        if name in _methods:
            raise ValueError(f"method {name!r} is registered already, by {_methods[name].build}")
        _methods[name] = Method(name, title, summary, paper, config, adapter, **promises)
        return adapter

    return add


def get_method(name: str) -> Method:
    """The method called ``name``. Raises ValueError listing the known ones."""
    try:
        return _methods[name]
    except KeyError:
        raise UserError(f"unknown method {name!r}; known methods: {', '.join(method_names())}") from None


def method_names() -> list[str]:
    """Names of all registered methods, in the order they registered."""
    return list(_methods)


def options() -> dict[str, tuple[FieldInfo, list[str]]]:
    """Every option of every method: its field, and the names of the methods that have it."""
    found: dict[str, tuple[FieldInfo, list[str]]] = {}
    for name, method in _methods.items():
        for option, field in method.config.model_fields.items():
            found.setdefault(option, (field, []))[1].append(name)
    return found


def explain(error: ValidationError) -> str:
    """A pydantic error as one line a person can act on: field, what is wrong, what was given."""
    return "; ".join(_explain_one(item) for item in error.errors(include_url=False))


def _explain_one(item) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"there is no option {place!r}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{place}: {message} (given: {item['input']!r})" if place else message
