"""One typed configuration of a training run: from flags, a form or YAML, to YAML."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hra_diffusion.adapters import registry
from hra_diffusion.adapters.registry import explain
from hra_diffusion.errors import UserError
from hra_diffusion.files import validated_name, write_text
from hra_diffusion.models.loading import DTYPES
from hra_diffusion.models.sources import TOYBOX
from training.presets import PRESETS, defaults


class ConfigError(UserError):
    """A training configuration can't be used: which field, what is wrong, what is allowed."""


RENAMED = {
    "noise_power": "timestep_bias",
    "fit": "memory_limit",
    "draw_batch": "sample_batch_size",
    "schedule": "lr_scheduler",
    "warmup_steps": "lr_warmup_steps",
    "prior_weight": "prior_loss_weight",
    "class_images": "num_class_images",
    "max_gradient_norm": "max_grad_norm",
    "gradient_accumulation": "gradient_accumulation_steps",
    "text_encoder_rate": "text_encoder_lr_scale",
}
"""Field names of earlier versions and what they are called now. Files and callers may use either."""


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with the field names of earlier versions replaced by the current ones."""
    return {RENAMED.get(name, name): value for name, value in values.items()}


class TrainConfig(BaseModel):
    """Everything that decides a run. Fields left out take the preset's value for this base and method."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", validate_default=True)

    name: str = Field(description="Name of the adapter and of the run's folder.")
    photos: tuple[Path, ...] = Field(min_length=1, description="Photos, or folders of photos, of the subject.")
    class_noun: str = Field(min_length=1, max_length=60, description='What it is, in a word: "dog", "teapot", "toy".')
    trigger: str = Field("sks", min_length=1, max_length=40, description="Rare word that will stand for the subject.")
    caption: str = Field(
        "a photo of a {subject}", description="Caption of photos that have no .txt or .caption file beside them."
    )
    add_trigger: bool = Field(
        True, description='Put the subject before captions that lack the trigger: "sks dog, a dog sitting".'
    )
    crop: Literal["smart", "center", "letterbox"] = Field("smart", description="How photos become square.")

    boxes: dict[Path, tuple[int, int, int, int]] = Field(
        default_factory=dict,
        description="The part of a photo to use: left, top, right, bottom in pixels of the upright photo, by its file.",
    )

    base: str = Field(TOYBOX, description="Base model: toybox, a diffusers folder, a .safetensors file, a hub id.")
    dtype: str = Field("float32", description=f"Precision of the frozen base: {', '.join(DTYPES)}.")
    base_weights: Literal["full", "int8", "nf4"] = Field(
        "full", description="Storage of the UNet's frozen weights: as its precision says, in 8 bits, or in 4."
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = Field(
        None, description="Overrides the prediction type saved with the base."
    )
    rescale_zero_snr: bool | None = Field(None, description="Overrides whether the base has zero terminal SNR.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Precision of the arithmetic.")
    device: Literal["cpu", "cuda", "mps"] | None = Field(None, description="The best there is by default.")

    preset: Literal["quick", "balanced", "best"] = Field("balanced", description="How long to learn.")
    method: str = Field("hra", description="Adapter method.")
    options: dict[str, Any] = Field(default_factory=dict, description="The method's own options.")
    targets: str = Field("attention", description="Layers of the UNet to adapt: a named set or a pattern.")
    train_text_encoder: bool = Field(description="Adapt the text encoder too.")
    text_encoder_lr_scale: float = Field(
        1.0, gt=0, le=10, description="The text encoder's learning rate, as a part of the UNet's."
    )

    steps: int = Field(ge=1, le=100_000, description="Optimiser steps.")
    batch_size: int = Field(ge=1, le=64, description="Photos a step (on each device).")
    gradient_accumulation_steps: int = Field(1, ge=1, le=64, description="Batches accumulated for one optimiser step.")
    learning_rate: float = Field(gt=0, le=1, description="Learning rate of AdamW.")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        description="Learning rate schedule after the warmup: constant, or decaying to 0 along a line or a cosine."
    )
    lr_warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises at the start.")
    weight_decay: float = Field(ge=0, le=1, description="Weight decay of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    timestep_bias: float = Field(
        1.0, gt=0, le=4, description="Timesteps are a uniform number's power of this; below 1, noisier ones."
    )
    min_snr_gamma: float = Field(0.0, ge=0, description="γ of the min-SNR loss weighting; 0 switches it off.")
    min_snr_formula: Literal["standard", "plus-one"] = Field(
        description="Min-SNR weight of v-prediction: min(SNR, γ)/(SNR + 1), or (min(SNR, γ) + 1)/(SNR + 1)."
    )
    prior_loss_weight: float = Field(ge=0, le=10, description="Weight of prior preservation; 0 switches it off.")
    num_class_images: int = Field(ge=1, le=1000, description="Class images the base draws once for prior preservation.")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="Decay of the weights' moving average; 0 switches it off.")
    flip: bool = Field(
        description="Also learn from mirrored photos. Text, logos and faces are then learned mirrored too."
    )
    size_conditioning: bool = Field(
        True, description="Condition Stable Diffusion XL on each photo's original size and crop."
    )
    gradient_checkpointing: bool = Field(False, description="Less memory, about a third slower.")
    sample_batch_size: int = Field(8, ge=1, le=8, description="Class images, or sample pictures, drawn at once.")
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="AdamW, or one that keeps its state in 8 bits (needs bitsandbytes)."
    )
    memory_limit: str | None = Field(
        None,
        description='Memory that training may use, as "8GB". Slower or smaller settings are chosen until it fits.',
    )
    resolution: int | None = Field(None, ge=64, le=2048, description="Side of the training pictures in pixels.")
    seed: int = Field(0, ge=0, lt=2**32, description="Decides everything random.")

    checkpoint_every: int = Field(ge=1, description="Steps between checkpoints.")
    sample_every: int = Field(ge=0, description="Steps between rounds of sample pictures; 0: only before and after.")
    sample_prompts: tuple[str, ...] = Field(
        ("a photo of a {subject}", "a {subject} in the snow", "a {subject} on the beach"),
        description="Prompts of the sample pictures.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        given = {field: value for field, value in with_current_names(given).items() if value is not None}
        method = registry.get_method(str(given.get("method", "hra")))
        preset = given.get("preset", "balanced")
        preset = preset if preset in PRESETS else "balanced"  # a wrong one is refused with the other fields
        filled = defaults(str(given.get("base", TOYBOX)), method.name, preset)
        options = given.get("options", {})
        if not isinstance(options, dict):
            raise ValueError(f"options must be lines like 'rank: 8', not {options!r}")
        return filled | given | {"options": method.parse(filled["options"] | options).model_dump()}

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return validated_name(name)

    @field_validator("class_noun", "trigger")
    @classmethod
    def _check_words(cls, words: str) -> str:
        if not words.isprintable() or not words.strip():
            raise ValueError("must be plain words")
        return words.strip()

    @field_validator("dtype")
    @classmethod
    def _check_dtype(cls, dtype: str) -> str:
        if dtype not in DTYPES:
            raise ValueError(f"use one of {', '.join(DTYPES)}")
        return dtype

    @field_validator("memory_limit")
    @classmethod
    def _check_memory_limit(cls, limit: str | None) -> str | None:
        if limit is not None and not re.fullmatch(r"\d{1,4}(\.\d{1,2})?GB", limit := limit.replace(" ", "").upper()):
            raise ValueError('give an amount of memory such as "8GB"')
        return limit

    @property
    def subject(self) -> str:
        """How prompts call the subject: "sks dog"."""
        return f"{self.trigger} {self.class_noun}"

    def adapter_options(self) -> registry.MethodConfig:
        """The method's own, validated configuration."""
        return registry.get_method(self.method).parse(self.options)


def parse(values: dict[str, Any]) -> TrainConfig:
    """A configuration from plain values. Raises ConfigError naming every field that is wrong."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def read(path: Path) -> TrainConfig:
    """A configuration from a YAML file. Raises ConfigError for a missing, unreadable or wrong one."""
    return parse(read_values(path))


EARLIER = {"min_snr_formula": "plus-one", "size_conditioning": False, "add_trigger": False}
"""The behaviour of earlier versions, which did not have these fields."""


def read_run(path: Path) -> TrainConfig:
    """A run's own configuration; fields that its version did not have keep that version's behaviour."""
    return parse(EARLIER | read_values(path))


_SHAPES = {list: "a list, a line '- …' each", dict: "lines like 'rank: 8' below it", str: "plain words"}


def read_values(path: Path) -> dict[str, Any]:
    """The plain values of a YAML file. Raises ConfigError for one that is missing or no mapping, or wrong in shape."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings; expected lines like 'name: Rex'")
    for field, kind in (("photos", list), ("options", dict), ("base", str)):
        if not isinstance(values.get(field, kind()), kind):
            raise ConfigError(f"{path}: {field} must be {_SHAPES[kind]}, not {values[field]!r}")
    return with_current_names(values)


def write(config: TrainConfig, path: Path) -> None:
    """Write the whole configuration, presets filled in, as YAML."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
