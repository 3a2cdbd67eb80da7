"""Configuration of a training run, read from flags, a form or YAML and written as YAML."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hra_diffusion import yaml_text
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.registry import explain
from hra_diffusion.errors import UserError, shown
from hra_diffusion.files import write_text
from hra_diffusion.models.loading import DTYPES
from hra_diffusion.models.sources import TOYBOX
from hra_diffusion.names import validated_name
from training.presets import PRESETS, defaults


class ConfigError(UserError):
    """A training configuration is invalid. The message names the field, the problem and the allowed values."""


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
"""Current field names by those of earlier versions. Files and callers may use either."""


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with the field names of earlier versions replaced by the current ones."""
    return {RENAMED.get(name, name): value for name, value in values.items()}


class TrainConfig(BaseModel):
    """Everything that determines a training run.

    Fields that are not given take the preset's value for the base model and method.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", validate_default=True)

    name: str = Field(description="Name of the adapter and of the run folder.")
    photos: tuple[Path, ...] = Field(min_length=1, description="Photos of the subject, or folders that contain them.")
    class_noun: str = Field(
        min_length=1, max_length=60, description='Class of the subject, in a word: "dog", "teapot", "toy".'
    )
    trigger: str = Field(
        "sks", min_length=1, max_length=40, description="Rare word that stands for the subject in prompts."
    )
    caption: str = Field(
        "a photo of a {subject}", description="Caption of photos without a .txt or .caption file beside them."
    )
    add_trigger: bool = Field(
        True, description='Prepend the subject to captions that lack the trigger: "sks dog, a dog sitting".'
    )
    crop: Literal["smart", "center", "letterbox"] = Field(
        "smart",
        description="Square crop: around the most detail, in the centre, or none, with the photo padded to a square.",
    )
    boxes: dict[Path, tuple[int, int, int, int]] = Field(
        default_factory=dict,
        description="Part of each photo to use: left, top, right, bottom in pixels of the upright photo, by file.",
    )

    base: str = Field(TOYBOX, description="Base model: toybox, a diffusers folder, a .safetensors file or a hub id.")
    base_revision: str | None = Field(
        None, description="Branch, tag or commit of a base model on the hub. By default its main branch."
    )
    base_variant: str | None = Field(
        None, description="Variant of the base model's weights, such as fp16. By default those without a variant."
    )
    dtype: str = Field("float32", description=f"Precision of the frozen base model: {', '.join(DTYPES)}.")
    base_weights: Literal["full", "int8", "nf4"] = Field(
        "full",
        description="Storage of the frozen UNet weights: full precision, 8 bits or 4 bits. Fewer bits save memory.",
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = Field(
        None, description="Overrides the prediction type saved with the base model."
    )
    rescale_zero_snr: bool | None = Field(None, description="Overrides whether the base model has zero terminal SNR.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Precision of autocast arithmetic.")
    device: str | None = Field(
        None,
        pattern=r"^(cpu|mps|cuda(:\d{1,3})?)$",
        description="Device to train on: cpu, mps, cuda or, of several GPUs, such as cuda:1. By default the fastest.",
    )

    preset: Literal["quick", "balanced", "best"] = Field("balanced", description="How long to train.")
    method: str = Field("hra", description="Adapter method.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the adapter method.")
    targets: str = Field(
        "attention", description="Layers of the UNet to adapt: a named set or a pattern of layer names."
    )
    exclude: str | None = Field(
        None, description="Layers that are not adapted though they are targets: a pattern of layer names."
    )
    ranks: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        max_length=1000,
        description="Ranks that differ from the method's option, by pattern of layer names. The first match counts.",
    )
    train_text_encoder: bool = Field(description="Also train an adapter for the text encoder.")
    text_encoder_lr_scale: float = Field(
        1.0, gt=0, le=10, description="Learning rate of the text encoder, relative to that of the UNet."
    )

    steps: int = Field(ge=1, le=100_000, description="Number of optimizer steps.")
    batch_size: int = Field(ge=1, le=64, description="Photos per batch, on each device.")
    gradient_accumulation_steps: int = Field(1, ge=1, le=64, description="Batches per optimizer step.")
    learning_rate: float = Field(gt=0, le=1, description="Peak learning rate of AdamW.")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        description="Learning rate after the warmup: constant, or linear or cosine decay to 0."
    )
    lr_warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises to its peak.")
    weight_decay: float = Field(ge=0, le=1, description="Weight decay of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Norm to which gradients are clipped.")
    timestep_bias: float = Field(
        1.0,
        gt=0,
        le=4,
        description="Exponent of the timestep distribution. 1 is uniform; lower values sample noisier timesteps.",
    )
    min_snr_gamma: float = Field(0.0, ge=0, description="γ of the min-SNR loss weighting. 0 disables it; 5 is usual.")
    min_snr_formula: Literal["standard", "plus-one"] = Field(
        description="Min-SNR weight for v-prediction: min(SNR, γ)/(SNR + 1) or (min(SNR, γ) + 1)/(SNR + 1)."
    )
    prior_loss_weight: float = Field(ge=0, le=10, description="Weight of the prior preservation loss. 0 disables it.")
    num_class_images: int = Field(
        ge=1, le=1000, description="Class images for prior preservation, generated once by the base model."
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="Decay of the exponential moving average of the weights. 0 disables it."
    )
    flip: bool = Field(description="Also train on mirrored photos. Disable it for subjects with text, logos or faces.")
    size_conditioning: bool = Field(
        True, description="Condition Stable Diffusion XL on the original size and crop of each photo."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third slower."
    )
    cuda_graph: Literal["auto", "off"] = Field(
        "auto",
        description="On CUDA, launch each step as one graph if a check at the start finds its results equal (auto).",
    )
    compile: bool = Field(
        False,
        description="Compile the transformer blocks of the UNet with torch.compile. The first step may take minutes.",
    )
    log_every: int | None = Field(
        None, ge=1, le=1000, description="Steps between two readings of the loss. By default 1 on a CPU, 10 on a GPU."
    )
    sample_batch_size: int = Field(8, ge=1, le=8, description="Class images or samples generated at once.")
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="AdamW, or AdamW with its state in 8 bits (requires bitsandbytes)."
    )
    memory_limit: str | None = Field(
        None,
        description='Memory that training may use, such as "8GB". Settings that save memory are enabled until it fits.',
    )
    resolution: int | None = Field(
        None, ge=64, le=2048, description="Side of the training images in pixels. By default that of the base model."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of all random numbers.")

    checkpoint_every: int = Field(ge=1, description="Steps between checkpoints.")
    sample_every: int = Field(
        ge=0, description="Steps between rounds of samples. 0 generates them only before and after training."
    )
    sample_prompts: tuple[str, ...] = Field(
        ("a photo of a {subject}", "a {subject} in the snow", "a {subject} on the beach"),
        description="Prompts of the samples.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        given = {field: value for field, value in with_current_names(given).items() if value is not None}
        method = registry.get_method(str(given.get("method", "hra")))
        preset = given.get("preset", "balanced")
        preset = preset if str(preset) in PRESETS else "balanced"  # validated with the other fields
        filled = defaults(str(given.get("base", TOYBOX)), method.name, preset)
        options = given.get("options", {})
        if not isinstance(options, dict):
            raise ValueError(f"options must be lines like 'rank: 8', not {shown(options)}")
        return filled | given | {"options": method.parse(filled["options"] | options).model_dump()}

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return validated_name(name)

    @field_validator("class_noun", "trigger")
    @classmethod
    def _check_text(cls, text: str) -> str:
        if not text.isprintable() or not text.strip():
            raise ValueError("must be plain words")
        return text.strip()

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
        """The subject as it appears in prompts, such as "sks dog"."""
        return f"{self.trigger} {self.class_noun}"

    @property
    def sample_texts(self) -> list[str]:
        """The sample prompts with the subject in place of ``{subject}``."""
        return [prompt.replace("{subject}", self.subject) for prompt in self.sample_prompts]


EXECUTION_FIELDS: tuple[str, ...] = ("device", "cuda_graph", "compile", "log_every")
"""Fields that determine how a run is computed. They may change when it is resumed."""


def parse(values: dict[str, Any]) -> TrainConfig:
    """Return the configuration with these values. Raises ConfigError that names every invalid field."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def read(path: Path) -> TrainConfig:
    """Read a configuration from a YAML file. Raises ConfigError if it is missing, unreadable or invalid."""
    return parse(read_values(path))


EARLIER_DEFAULTS = {"min_snr_formula": "plus-one", "size_conditioning": False, "add_trigger": False}
"""Values of fields that earlier versions did not have, to reproduce their behaviour."""


def read_run(path: Path) -> TrainConfig:
    """Read the configuration of a run from a file (see ``parse_run``)."""
    return parse_run(read_values(path))


def parse_run(values: dict[str, Any]) -> TrainConfig:
    """Return the configuration of a run with these values. Missing fields take ``EARLIER_DEFAULTS``."""
    return parse(EARLIER_DEFAULTS | with_current_names(values))


_KINDS = {"photos": list, "options": dict, "ranks": dict, "name": str, "base": str}
_EXPECTED = {list: "a list, a line '- …' each", dict: "lines like 'rank: 8' below it", str: "plain words"}


def read_values(path: Path) -> dict[str, Any]:
    """Read the plain values of a YAML file. Raises ConfigError if it is unreadable or not a mapping."""
    try:
        with path.open(encoding="utf-8") as file:
            values = parse_yaml(file.read(yaml_text.MAX_CHARACTERS + 1))
        if not values:
            raise ConfigError("it holds no settings; expected lines like 'name: Rex'")
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from None
    except ValueError as error:  # also of the decoder
        raise ConfigError(f"{path} can't be read as YAML: {error}") from None
    return values


def parse_yaml(text: str) -> dict[str, Any]:
    """Parse settings written as YAML, {} for an empty text. Raises ConfigError if it is malformed or not a mapping."""
    try:
        values = yaml_text.parse(text)
    except UserError as error:
        raise ConfigError(str(error)) from None
    for field, kind in _KINDS.items():
        if not isinstance(given := values.get(field, kind()), kind):
            raise ConfigError(f"{field} must be {_EXPECTED[kind]}, not {shown(given)}")
    if wrong := [photo for photo in values.get("photos", ()) if not isinstance(photo, str)]:
        raise ConfigError(f"photos must be paths, not {shown(wrong[0])}; write it in quotes")
    return with_current_names(values)


def write(config: TrainConfig, path: Path) -> None:
    """Write the configuration as YAML, including the values of the preset."""
    write_text(path, yaml_text.write(config.model_dump(mode="json")))
