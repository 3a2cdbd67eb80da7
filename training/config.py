"""Configuration of a training run, read from flags, a form or YAML and written as YAML."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from hra_diffusion import yaml_text
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.registry import explain
from hra_diffusion.errors import UserError, shown
from hra_diffusion.files import write_text
from hra_diffusion.models.sources import TOYBOX
from training.presets import PRESETS, defaults, rank_factor
from training.settings.adapter import AdapterSettings
from training.settings.base_model import BaseModelSettings
from training.settings.cluster import ClusterSettings
from training.settings.execution import ExecutionSettings
from training.settings.images import ImageSettings
from training.settings.monitoring import MonitoringSettings
from training.settings.objective import ObjectiveSettings
from training.settings.optimization import OptimizationSettings
from training.settings.subject import Concept, SubjectSettings

TOPICS: dict[str, type[BaseModel]] = {
    "Subject": SubjectSettings,
    "Photos": ImageSettings,
    "Base model": BaseModelSettings,
    "Adapter": AdapterSettings,
    "Objective": ObjectiveSettings,
    "Optimization": OptimizationSettings,
    "Memory and speed": ExecutionSettings,
    "Checkpoints and samples": MonitoringSettings,
    "Cluster": ClusterSettings,
}
"""The settings by topic, as the command line and the page group them."""


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


class TrainConfig(
    ClusterSettings,
    MonitoringSettings,
    ExecutionSettings,
    OptimizationSettings,
    ObjectiveSettings,
    AdapterSettings,
    BaseModelSettings,
    ImageSettings,
    SubjectSettings,
):
    """Everything that determines a training run.

    Fields that are not given take the preset's value for the base model and method.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        given = {field: value for field, value in with_current_names(given).items() if value is not None}
        given = _with_concepts(given)
        method = registry.get_method(str(given.get("method", "hra")))
        preset = given.get("preset", "balanced")
        preset = preset if str(preset) in PRESETS else "balanced"  # validated with the other fields
        optimizer = str(given.get("optimizer", "adamw"))
        filled = defaults(str(given.get("base", TOYBOX)), method.name, preset, optimizer)
        if given.get("preservation") == "base-output":  # chosen where the preset preserves nothing
            filled["prior_loss_weight"] = 1.0
        options = given.get("options", {})
        if not isinstance(options, dict):
            raise ValueError(f"options must be lines like 'rank: 8', not {shown(options)}")
        parsed = method.parse(filled["options"] | options).model_dump()
        filled["learning_rate"] *= rank_factor(method.name, optimizer, filled["options"]["rank"], parsed["rank"])
        return filled | given | {"options": parsed}

    @property
    def sample_texts(self) -> list[str]:
        """The sample prompts with each subject in turn in place of ``{subject}``; those without it once."""
        return [prompt.replace("{subject}", subject.subject) for subject, prompt in self.samples]

    @property
    def samples(self) -> list[tuple[Concept, str]]:
        """The subject and the prompt of each sample."""
        return [
            (subject, prompt)
            for number, subject in enumerate(self.subjects)
            for prompt in self.sample_prompts
            if number == 0 or "{subject}" in prompt
        ]

    @property
    def uses_class_images(self) -> bool:
        """Whether the run trains on class images."""
        return self.prior_loss_weight > 0 and self.preservation == "class-images"

    @property
    def uses_base_output(self) -> bool:
        """Whether the base model's own output for class captions is a target."""
        return self.prior_loss_weight > 0 and self.preservation == "base-output"


def _with_concepts(given: dict[str, Any]) -> dict[str, Any]:
    """Return the values with photos, class noun and trigger of the concepts, if there are any.

    Raises ValueError if the concepts are invalid, or if other photos, another class noun or trigger are given.
    """
    if not given.get("concepts"):
        return given
    try:
        concepts = TypeAdapter(tuple[Concept, ...]).validate_python(given["concepts"])
    except ValidationError as error:
        raise ValueError(f"concepts: {explain(error)}") from None
    photos = [photo for concept in concepts for photo in concept.photos]
    if "photos" in given and {*map(Path, given["photos"])} != {*photos}:
        raise ValueError("photos are given beside the concepts, which have their own; remove them")
    first = {"class_noun": concepts[0].class_noun, "trigger": concepts[0].trigger}
    if others := [name for name, own in first.items() if given.get(name, own) != own]:
        raise ValueError(f"{others[0]} is given beside the concepts, which have their own; remove it")
    return {"photos": photos} | given | first


EXECUTION_FIELDS: tuple[str, ...] = ("device", "cuda_graph", "compile", "log_every", "jobs", "storage")
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


EARLIER_DEFAULTS = {
    "min_snr_formula": "plus-one", "size_conditioning": False, "add_trigger": False, "caption_dropout": 0.0,
    "crop": "smart", "mask": "off",
}  # fmt: skip
"""Values of fields that earlier versions did not have, to reproduce their behaviour."""


def read_run(path: Path) -> TrainConfig:
    """Read the configuration of a run from a file (see ``parse_run``)."""
    return parse_run(read_values(path))


def parse_run(values: dict[str, Any]) -> TrainConfig:
    """Return the configuration of a run with these values. Missing fields take ``EARLIER_DEFAULTS``."""
    return parse(EARLIER_DEFAULTS | with_current_names(values))


_KINDS = {"photos": list, "concepts": list, "options": dict, "ranks": dict, "name": str, "base": str}
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
