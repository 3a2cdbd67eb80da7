"""The adapter methods by name. A new method is one file in ``adapters/methods`` that calls ``register``."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.factors import LayerFactors, LowRank, adapted_weight, compose
from hra_diffusion.errors import UserError, shown


class MethodConfig(BaseModel):
    """Options common to all methods. Subclasses add fields, whose metadata make the CLI flags and the web form."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")
    refused: ClassVar[set[str]] = set()
    """Options that keep their defaults with this method."""

    rank: int = Field(8, ge=1, le=256, description="Rank of the adapter: its capacity and its size.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of each layer's rank-sized activations that training sets to 0."
    )
    timestep_rank: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the rank that the noisiest timestep trains; less noise trains more of it, up to all "
        "(T-LoRA). 1 disables it; 0.5 is usual.",
    )

    @property
    def units(self) -> int:
        """Number of ranks that a timestep uses or leaves out."""
        return self.rank

    @property
    def orthogonal(self) -> bool:
        """Whether the factors are rotations and a scale alone, which ``fusion.fuse`` takes."""
        return False

    def misfit(self, d_in: int, d_out: int) -> str:
        """Why a layer (d_out, d_in) of at least this rank can't be adapted, or ""."""
        return ""


TRAINING_OPTIONS = {"dropout", "timestep_rank"}
"""Options without effect on a finished adapter."""


class Adapter(nn.Module):
    """Parameters that adapt one frozen weight W (d_out, d_in). A method implements ``factors``."""

    method: str
    config: MethodConfig

    def factors(self, parameters: Mapping[str, Tensor], strength: float = 1.0) -> LayerFactors:
        """The factors of W′ for these values of the parameters, by name, at this strength.

        The values may be those of several layers of equal shapes, stacked along a first dimension.
        """
        raise NotImplementedError

    def start_from(self, weight: Callable[[], Tensor]) -> None:
        """Set the initial values that depend on the layer's weight (d_out, d_in); most methods have none."""

    def extra_repr(self) -> str:
        """Return the options that differ from the defaults, and the rank."""
        changed = self.config.model_dump(exclude_defaults=True)
        return ", ".join(f"{name}={value}" for name, value in ({"rank": self.config.rank} | changed).items())

    def own_factors(self, strength: float = 1.0) -> LayerFactors:
        """The factors of W′ for the adapter's own parameters."""
        return self.factors(dict(self.named_parameters()), strength)

    def adapted_weight(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """W′ (d_out, d_in), in the weight's dtype."""
        return adapted_weight(weight, self.own_factors(strength).with_weight(weight, strength))

    def low_rank(self, weight: Tensor, strength: float = 1.0) -> LowRank:
        """W′ as an exact update of W in factors, in the weight's dtype, for inference and export."""
        return compose(weight, [self.own_factors(strength).with_weight(weight, strength)])


AdapterClass = Callable[[MethodConfig, int, int, Generator], Adapter]
"""Builds an adapter from its configuration, d_in, d_out and a generator for the initial values."""


@dataclass(frozen=True)
class PeftForm:
    """The equivalent of a method in PEFT."""

    peft_type: str
    parameters: dict[str, str]
    """Our parameter names -> PEFT's."""
    to_peft: Callable[[Any], dict[str, Any]]
    """Converts our configuration to PEFT's fields."""
    from_peft: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Converts PEFT's fields to our options; None if PEFT's folders are imported as a LoRA instead."""
    linear_only: bool = False
    """Whether PEFT adapts convolutions in another way."""


@dataclass(frozen=True)
class Method:
    """A registered method. ``starts_at_base``: whether the initial adapter does not change the model."""

    name: str
    title: str
    summary: str
    paper: str
    config: type[MethodConfig]
    build: AdapterClass
    penalty: Callable[[MethodConfig, Iterable[nn.Module]], Tensor] | None = None
    starts_at_base: Callable[[MethodConfig], bool] = lambda config: True
    peft: PeftForm | None = None

    def shapes(self, config: MethodConfig, d_in: int, d_out: int) -> Mapping[str, torch.Size]:
        """Shapes of an adapter's parameters, by name, for a layer (d_out, d_in)."""
        return {name: shape for name, (shape, _) in _parameters(self.build, cast(Any, config), d_in, d_out).items()}

    def trainable_values(self, config: MethodConfig, d_in: int, d_out: int) -> int:
        """Number of values that an adapter trains for a layer (d_out, d_in)."""
        found = _parameters(self.build, cast(Any, config), d_in, d_out).values()
        return sum(shape.numel() for shape, trained in found if trained)

    @property
    def options(self) -> dict[str, FieldInfo]:
        """The options that can be set, by name."""
        return {name: field for name, field in self.config.model_fields.items() if name not in self.config.refused}

    def parse(self, options: dict | MethodConfig) -> MethodConfig:
        """Validate options. Raises UserError naming the invalid option and the allowed values."""
        if isinstance(options, MethodConfig):
            if not isinstance(options, self.config):
                raise ValueError(f"{type(options).__name__} is not a configuration of {self.name}")
            return options
        try:
            return self.config.model_validate(options)
        except ValidationError as error:
            raise UserError(f"{self.name}: {explain(error)}") from None


@functools.lru_cache(maxsize=4096)  # the page counts parameters at every change of the form
def _parameters(
    build: AdapterClass, config: MethodConfig, d_in: int, d_out: int
) -> Mapping[str, tuple[torch.Size, bool]]:
    """The shapes of an adapter's parameters, and whether they are trained, by name."""
    adapter = build(config, d_in, d_out, Generator())
    return {name: (parameter.shape, parameter.requires_grad) for name, parameter in adapter.named_parameters()}


_methods: dict[str, Method] = {}

A = TypeVar("A", bound=type)


def register(name: str, *, config: type[MethodConfig], title: str, summary: str, paper: str, **promises) -> Callable:
    """Class decorator that registers an adapter class as ``name``. Raises ValueError if the name is in use."""

    def add(adapter: A) -> A:
        if name in _methods:
            raise ValueError(f"method {name!r} is registered already, by {_methods[name].build}")
        _methods[name] = Method(name, title, summary, paper, config, adapter, **promises)
        return adapter

    return add


def get_method(name: str) -> Method:
    """The method called ``name``. Raises UserError listing the known methods."""
    try:
        return _methods[name]
    except KeyError:
        raise UserError(f"unknown method {shown(name)}; known methods: {', '.join(method_names())}") from None


def method_names() -> list[str]:
    """Names of all registered methods, in the order of registration."""
    return list(_methods)


def options() -> dict[str, tuple[FieldInfo, list[str]]]:
    """All options of all methods: option -> (field, names of the methods that have it)."""
    found: dict[str, tuple[FieldInfo, list[str]]] = {}
    for name, method in _methods.items():
        for option, field in method.options.items():
            found.setdefault(option, (field, []))[1].append(name)
    return found


MAX_ERRORS = 5
"""Number of problems that ``explain`` writes out."""


def explain(error: ValidationError) -> str:
    """Format a pydantic error as one line of bounded length: field, problem, given value."""
    items = error.errors(include_url=False)
    more = [f"and {len(items) - MAX_ERRORS} more"] if len(items) > MAX_ERRORS else []
    return "; ".join([*map(_explain_one, items[:MAX_ERRORS]), *more])


def _explain_one(item) -> str:
    field = ".".join(part if isinstance(part, str) and len(part) < 100 else shown(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"there is no option {field!r}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{field}: {message} (given: {shown(item['input'])})" if field else message
