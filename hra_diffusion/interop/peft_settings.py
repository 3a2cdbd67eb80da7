"""PEFT's settings of an adapter, from ``adapter_config.json`` or the metadata that diffusers writes.

They follow PEFT 0.21.2: ``tuners/tuners_utils.py`` (layers), ``utils/other.py`` (patterns) and each method's
``layer.py`` (scales). Each setting is honoured, ignored because it does not change a weight, or refused.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import nn

from hra_diffusion.adapters import registry
from hra_diffusion.errors import UserError, shown
from hra_diffusion.patterns import compile_pattern

METHODS = {"LORA": "LoRA", "LOHA": "LoHa", "LOKR": "LoKr", "HRA": "HRA", "OFT": "OFT", "BOFT": "BOFT"}
"""``peft_type`` -> name of the method in ``lora_conversion.FORMS``."""
IGNORED = frozenset({
    # training options and provenance
    "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "runtime_config",
    "lora_dropout", "module_dropout", "rank_dropout", "rank_dropout_scale", "init_weights", "boft_dropout",
    # used only together with another setting
    "megatron_core", "qalora_group_size", "eva_config", "corda_config", "loftq_config", "lora_ga_config",
    # ignored by PEFT for linear and convolution layers
    "fan_in_fan_out", "ensure_weight_tying",
})  # fmt: skip
"""Settings that don't change the weight of a linear or convolution layer."""
REFUSED = {
    "bias": "it trains biases, and adapters here change weights only",
    "lora_bias": "it trains biases, and adapters here change weights only",
    "modules_to_save": "it replaces whole modules, and adapters here change linear and conv weights",
    "trainable_token_indices": "it trains token embeddings, and adapters here change linear and conv weights",
    "target_parameters": "it adapts parameters outside of layers",
    "layer_replication": "it builds a model of repeated layers",
    "megatron_config": "it is for layers split over several machines",
    "use_qalora": "its factors are for a quantised base with pooled inputs",
    "alora_invocation_tokens": "it acts on some tokens only, which a change of weights can't",
    "arrow_config": "it chooses among several adapters for each token",
    "monteclora_config": "its weights are random",
    "use_bdlora": "its factors are stored as blocks",
    "velora_config": "VeLoRA is not supported",
    "kasa_config": "it truncates the base's own weights",
}
"""Settings that are refused, with the reason."""
RESIDUAL_STARTS = {"pissa", "olora"}
"""Initialisations that subtract the initial factors from the base weight, from which they can be recomputed."""
LINEAR_STARTS = {"eva", "orthogonal", "mica", *RESIDUAL_STARTS}
"""Initialisations that PEFT supports for linear layers only."""
IRREVERSIBLE_STARTS = {
    "pissa_niter": "its start is random, and the base was changed by it",
    "corda": "the base was changed by data that is not in the folder",
    "loftq": "the base was quantised for it",
    "lora_ga": "the base was changed by gradients that are not in the folder",
}
"""Initialisations that change the base weight in a way that can't be reconstructed, with the reason."""


class SettingsError(UserError):
    """A setting can't be honoured."""


T = TypeVar("T")
_Many = Field(max_length=2000)
_Names = Annotated[list[str], _Many] | str
_BY_NAME = r"(?:.*\.)?(?:{})"
"""Where PEFT matches the patterns of ranks and alphas: at the end of a name."""
_BY_INDEX = r"(?:^|.*?\.){}\.(\d+)\."
"""Where PEFT matches ``layers_pattern``: before the index of a block."""
_ANY_BLOCK = re.compile(r".*?\.[^.]*\.(\d+)\.")


class PeftSettings(BaseModel):
    """The settings that determine the meaning of an adapter's tensors, with PEFT's defaults."""

    model_config = ConfigDict(frozen=True)

    peft_type: Literal["LORA", "LOHA", "LOKR", "HRA", "OFT", "BOFT"] = "LORA"
    r: int | None = Field(default=None, ge=0)
    alpha: float = 8.0
    rank_pattern: Annotated[dict[str, int], _Many] = Field(default_factory=dict)
    alpha_pattern: Annotated[dict[str, float], _Many] = Field(default_factory=dict)
    target_modules: _Names | None = None
    exclude_modules: _Names = Field(default_factory=list)
    layers_to_transform: Annotated[list[int], _Many] | int = Field(default_factory=list)
    layers_pattern: _Names = Field(default_factory=list)
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    use_effective_conv2d: bool = False
    decompose_both: bool = False
    decompose_factor: int = -1
    apply_GS: bool = False  # noqa: N815 (PEFT's name)
    oft_block_size: int | None = Field(default=None, ge=0)
    block_share: bool = False
    coft: bool = False
    eps: float = 6e-5
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = Field(default=5, ge=1, le=100)
    boft_block_size: int = Field(default=4, ge=0)
    boft_block_num: int = Field(default=0, ge=0)
    boft_n_butterfly_factor: int = Field(default=1, ge=1)

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _check_patterns(cls, patterns: dict[str, Any]) -> dict[str, Any]:
        for pattern in patterns:
            compile_pattern(pattern, _BY_NAME)
        return patterns

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _check_names(cls, names: Any) -> Any:
        if isinstance(names, str):
            compile_pattern(names)
        return names

    @field_validator("layers_pattern")
    @classmethod
    def _check_layer_names(cls, names: Any) -> Any:
        for pattern in [names] if isinstance(names, str) else names:
            compile_pattern(pattern, _BY_INDEX)
        return names

    @model_validator(mode="after")
    def _check_layers(self) -> "PeftSettings":
        if self.layers_pattern and self.layers_to_transform == []:
            raise ValueError("layers_pattern requires layers_to_transform")
        if self.layers_to_transform != [] and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform requires target_modules to be a list")
        return self

    def of_layer(self, names: Sequence[str]) -> "PeftSettings":
        """The settings of one layer. The first pattern that matches any of its names gives its rank and alpha."""
        rank = _first_match(self.rank_pattern, names, self.r)
        return self.model_copy(update={"r": rank, "alpha": _first_match(self.alpha_pattern, names, self.alpha)})

    def targets(self, name: str, layer: nn.Module) -> bool:
        """Whether PEFT adapts the layer of this name."""
        if _matches(name, self.exclude_modules):
            return False
        if self.target_modules is None:
            return True
        if str(self.target_modules).lower() == "all-linear":
            return isinstance(layer, nn.Linear)
        return _matches(name, self.target_modules) and self._transforms(name)

    def _transforms(self, name: str) -> bool:
        """Whether ``layers_to_transform`` contains the index of the layer's block, the first number in its name."""
        if self.layers_to_transform == []:
            return True
        given = self.layers_pattern
        patterns = [compile_pattern(p, _BY_INDEX) for p in ([given] if isinstance(given, str) else given) if p]
        found = next(filter(None, (p.match(name) for p in patterns or [_ANY_BLOCK])), None)
        indices = self.layers_to_transform
        return found is not None and found[1] in map(str, indices if isinstance(indices, list) else [indices])


def read(given: Mapping[str, Any]) -> PeftSettings:
    """Parse and check settings as written by PEFT.

    Raises SettingsError for a setting that can't be honoured or is unknown, and ValueError for an invalid value.
    """
    given = {"peft_version": "0", **{"alpha" if name == "lora_alpha" else name: value for name, value in given.items()}}
    for name, value in given.items():
        if reason := _refusal(name, value, given):
            raise SettingsError(f"its setting {shown(name)[1:-1]} = {shown(value)} can't be honoured: {reason}")
    known = {name: given[name] for name in PeftSettings.model_fields if given.get(name) is not None}
    try:
        return PeftSettings.model_validate(known)
    except ValidationError as error:
        raise ValueError(registry.explain(error)) from None


def _refusal(name: str, value: Any, given: Mapping[str, Any]) -> str:
    """Why a setting can't be honoured, or ""."""
    if name == "peft_type":
        return (
            "" if value in (None, "", *METHODS) else f"the supported methods of PEFT are {', '.join(METHODS.values())}"
        )
    if name == "peft_version":
        return _old_oft(str(value)) if given.get("peft_type") == "OFT" and given.get("use_cayley_neumann") else ""
    if name == "init_lora_weights" and isinstance(value, str):
        start = re.sub(r"_niter_\d+$", "_niter", value.lower())
        if start == "mica" and given.get("use_dora"):
            return "PEFT does not support it together with use_dora"
        known = start == "gaussian" or start in LINEAR_STARTS
        return (
            "" if known else IRREVERSIBLE_STARTS.get(start, "this initialisation is not known, and may change the base")
        )
    if name in PeftSettings.model_fields or name in IGNORED or not value or (name, value) == ("bias", "none"):
        return ""
    return REFUSED.get(name, "this setting is not known, and may change what the tensors mean")


def _old_oft(version: str) -> str:
    """Why an OFT of this version can't be read, or "". Source: ``tuners/oft/config.py``, which warns of the change."""
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    return "" if numbers >= [0, 18] else "before PEFT 0.18 the tensors of OFT had another meaning"


def _first_match(patterns: Mapping[str, T], names: Sequence[str], default: T) -> T:
    for pattern, value in patterns.items():
        if any(map(compile_pattern(pattern, _BY_NAME).fullmatch, names)):
            return value
    return default


def _matches(name: str, modules: list[str] | str) -> bool:
    if isinstance(modules, str):
        return bool(modules) and compile_pattern(modules).fullmatch(name) is not None
    return any(name == end or name.endswith(f".{end}") for end in modules)
