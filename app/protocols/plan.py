"""The plan of a benchmark: what is trained, drawn and compared. It decides the results and is stored beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.protocols.subjects import Prompt, Subject, dreambooth_subjects, own_subject, toybox_subjects
from hra_diffusion import records, yaml_text
from hra_diffusion.adapters import registry
from hra_diffusion.errors import UserError, first_line, shown
from hra_diffusion.files import write_text
from hra_diffusion.generation.png import slug
from training import config as configs
from training import rank_matching
from training.config import TrainConfig
from training.runs.calibration import Calibration

ProtocolName = Literal["toybox", "dreambooth", "mine"]
Budget = Literal["steps", "parameters", "seconds"]
Variants = dict[str, dict[str, Any]]
"""Training settings, fields of TrainConfig, by the label of a variant."""
LPIPS = "lpips"
METRICS = ("dino", "dinov2", "clip-l14", "efficientnet", LPIPS)
"""Further measures: of subject fidelity, by their names in ``hra_diffusion.evaluation.metrics``, and LPIPS."""
RELEASED_METRICS = ("dino", LPIPS)
"""The measures that stand beside those of the released scoring, with the CLIP model's."""
BASE = "base"
"""The variant without an adapter."""
PLAN_FILE = "benchmark.json"
"""Where a plan lies in the folder of its benchmark."""
PICTURES: dict[ProtocolName, int] = {"toybox": 1, "dreambooth": 4, "mine": 2}
"""Pictures per prompt by protocol; 4 as in the DreamBooth benchmark (arXiv 2208.12242, section 4.1)."""
WITHOUT_SAMPLES = {"sample_prompts": ()}
"""Settings of a cell's run: it needs no samples, whose time and memory would count as those of training."""
TRIGGER = "sks"
NOISE_SEED = 1000
"""Between the noise of two training seeds: more than the pictures of a cell."""


class Plan(BaseModel):
    """Everything that decides the results of a benchmark.

    ``variants`` maps labels to fields of TrainConfig. ``pictures`` are drawn per prompt, ``prompts`` limits the prompts
    to so many, taken evenly from the list. ``denoising_steps`` are those of the pictures. ``checkpoints`` of each run
    are drawn, besides the finished adapter. ``sources`` maps metrics to the folder or hub id of their model, if it is
    not their own. ``released``: see ``released.ReleasedScorer``. ``resolved`` are the variants with the steps or ranks
    of an equal budget, which the first run determines.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    protocol: ProtocolName
    name: str
    base: dict[str, Any]
    data: Path | None = None
    photos: tuple[Path, ...] = ()
    class_noun: str = ""
    subjects: tuple[str, ...]
    variants: Variants
    seeds: tuple[int, ...]
    prompts: int | None = Field(None, ge=1)
    pictures: int = Field(1, ge=1, le=32)
    budget: Budget = "steps"
    strengths: tuple[Annotated[float, Field(ge=-10, le=10)], ...] = (1.0,)
    denoising_steps: int = Field(default=25, ge=1, le=1000)
    clip: str | None = None
    metrics: tuple[str, ...] = ()
    sources: dict[str, str] = {}
    checkpoints: int = Field(0, ge=0, le=50)
    released: bool = False
    resolved: Variants | None = None

    def load_subjects(self) -> dict[str, Subject]:
        """Return the subjects by name with the prompts that are drawn."""
        found = {subject.name: subject for subject in self._all_subjects()}
        return {name: _with_prompts(found[name], self.prompts) for name in self.subjects}

    def _all_subjects(self) -> list[Subject]:
        return find_subjects(self.protocol, self.data, self.photos, self.class_noun)

    def config(self, subject: Subject, variant: str, seed: int) -> TrainConfig:
        """Return the configuration of a cell's run, with samples (see ``WITHOUT_SAMPLES``).

        Raises ConfigError for a variant that is none.
        """
        every = {"checkpoint_every": self._checkpoint_every(variant)} if self.checkpoints else {}
        return configs.parse(
            {"name": f"{self.name}-{slug(subject.name)}-{slug(variant)}-{seed}", "photos": [*map(str, subject.photos)],
             "class_noun": subject.class_noun, "trigger": TRIGGER, "seed": seed, "sample_every": 0, **self.base,
             **self.settings(variant), **every}
        )  # fmt: skip

    def trigger(self, variant: str) -> str:
        """Return the trigger with which a variant is trained."""
        return str((self.base | self.settings(variant)).get("trigger", TRIGGER))

    def settings(self, variant: str) -> dict[str, Any]:
        """Return the training settings of a variant, under an equal budget once that is resolved."""
        return (self.resolved or self.variants)[variant]

    def checkpoint_steps(self, variant: str) -> range:
        """Return the steps whose checkpoints are drawn: evenly spaced, before the last step."""
        if not self.checkpoints:  # often asked; steps parses the settings
            return range(0)
        every = self._checkpoint_every(variant)
        return range(every, self.steps(variant), every)[: self.checkpoints]

    def is_orthogonal(self, variant: str) -> bool:
        """Return whether the adapters of a variant are rotations, whose strength is not linear."""
        settings = self.settings(variant)
        return registry.get_method(settings["method"]).parse(settings.get("options", {})).orthogonal

    def steps(self, variant: str) -> int:
        """Return the training steps of a variant."""
        return _config(self.base, self.settings(variant)).steps

    def _checkpoint_every(self, variant: str) -> int:
        return max(1, self.steps(variant) // (self.checkpoints + 1))


def read(folder: Path) -> Plan | None:
    """Return the plan stored in a folder, or None."""
    return records.read(folder / PLAN_FILE, Plan, None)


def store(plan: Plan, folder: Path) -> None:
    """Write the plan into the folder of its benchmark."""
    write_text(folder / PLAN_FILE, plan.model_dump_json(indent=1))


def as_stored(plan: Plan, folder: Path) -> Plan:
    """Return the plan as its folder has it, with the resolved budget, or else as it is.

    Raises UserError if the folder has another plan.
    """
    if (stored := read(folder)) is None:
        return plan
    old, new = (json.loads(one.model_dump_json(exclude={"resolved"})) for one in (stored, plan))
    if other := sorted(name for name in new if old[name] != new[name]):
        changed = [label for label, own in new["variants"].items() if old["variants"].get(label, own) != own]
        keep = f"; or give {shown(changed[0])} the settings of {PLAN_FILE} in --variants FILE" if changed else ""
        names = ", ".join(other)
        raise UserError(
            f"{folder} is a benchmark with other settings ({names}); choose another --name, or delete it{keep}"
        )
    return stored


def find_subjects(protocol: ProtocolName, data: Path | None, photos: Sequence[Path], class_noun: str) -> list[Subject]:
    """Return all subjects of a protocol. Raises UserError if what it needs is not given."""
    if protocol == "toybox":
        return toybox_subjects()
    if protocol == "dreambooth":
        if data is None:
            raise UserError("give the folder of the DreamBooth dataset as --data (github.com/google/dreambooth)")
        return dreambooth_subjects(data)
    if not photos or not class_noun:
        raise UserError("the protocol mine needs --photos and --class-noun")
    return [own_subject(photos, class_noun)]


def _with_prompts(subject: Subject, count: int | None) -> Subject:
    """Return the subject with ``count`` of its prompts, evenly from the list."""
    total = len(subject.prompts)
    chosen = range(total) if count is None or count >= total else [number * total // count for number in range(count)]
    prompts: tuple[Prompt, ...] = tuple(subject.prompts[index] for index in chosen)
    return Subject(subject.name, subject.class_noun, subject.photos, subject.references, prompts)


def choose_subjects(found: Sequence[Subject], names: Sequence[str], count: int | None = None) -> tuple[str, ...]:
    """Return the named subjects, by default all or the first ``count``. Raises UserError for an unknown name."""
    known = [subject.name for subject in found]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"there is no subject {shown(unknown[0])}; choose among {', '.join(known)}")
    return tuple(names or known[:count])


def read_variants(methods: Sequence[str], file: Path | None) -> Variants:
    """Return the variants: one for each method, and those of a YAML file that maps labels to training settings.

    Raises UserError if a label is taken or a variant is not a mapping.
    """
    variants: Variants = {method: {"method": method} for method in methods}
    for label, changes in (_read_yaml(file) if file else {}).items():
        if label in (*variants, BASE):
            raise UserError(f"{file}: the variant {shown(str(label))} exists already; choose another label")
        if not isinstance(changes, dict) or "method" not in changes:
            raise UserError(f"{file}: the variant {shown(str(label))} needs lines like 'method: hra', and its settings")
        variants[str(label)] = changes
    if not variants:
        raise UserError("there is nothing to compare; give --methods or --variants")
    return variants


def read_metrics(given: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the metrics and the sources of their models, from texts such as "dino" and "dino=FOLDER".

    Raises UserError for an unknown metric.
    """
    pairs = [text.partition("=") for text in given]
    if unknown := [name for name, _, _ in pairs if name not in METRICS]:
        raise UserError(f"there is no metric {shown(unknown[0])}; choose among {', '.join(METRICS)}")
    names = tuple(dict.fromkeys(name for name, _, _ in pairs))
    return names, {name: absolute_source(source) for name, _, source in pairs if source}


def absolute_source(source: str) -> str:
    """Return a folder or file as an absolute path, and a hub id as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def _read_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises UserError if it can't be read."""
    try:
        return yaml_text.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read as YAML: {first_line(error)}") from None


def with_rate_factors(variants: Variants, base: Mapping[str, Any], factors: Sequence[float]) -> Variants:
    """Return each variant at its learning rate times each factor: "lora", "lora × 2", …"""
    result: Variants = {}
    for label, changes in variants.items():
        rate = _config(base, changes).learning_rate
        for factor in factors:
            name = label if factor == 1 else f"{label} × {factor:g}"
            result[name] = {**changes, "learning_rate": rate * factor}
    return result


def equal_parameters(variants: Variants, base: Mapping[str, Any], pipe: Any) -> Variants:
    """Return the variants with ranks at which they have about as many parameters as the first one."""
    result: Variants = {}
    parameters = 0
    for label, changes in variants.items():
        config = _config(base, changes)
        shapes = rank_matching.layer_shapes(pipe, config)
        if not result:
            parameters = rank_matching.count_parameters(config.method, config.options, shapes)
        rank = rank_matching.matched_rank(config.method, config.options, shapes, parameters)
        result[label] = {**changes, "options": {**changes.get("options", {}), "rank": rank}}
    return result


def equal_seconds(variants: Variants, base: Mapping[str, Any], measured: Mapping[str, Calibration]) -> Variants:
    """Return the variants with as many steps as take as long as those of the first one."""
    first = next(iter(variants))
    seconds = _config(base, variants[first]).steps * measured[first].step
    return {
        label: {**changes, "steps": max(1, round(seconds / measured[label].step))}
        for label, changes in variants.items()
    }


def _config(base: Mapping[str, Any], changes: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration of a variant without photos."""
    return configs.parse({"name": "benchmark", "photos": ["."], "class_noun": "thing", **base, **changes})


def check(plan: Plan) -> None:
    """Raise UserError if a variant is not valid, or a measure does not suit the plan."""
    if LPIPS in plan.metrics and plan.pictures < 2:
        raise UserError("LPIPS compares the pictures of one prompt; give --pictures 2 or more")
    if plan.released and plan.protocol != "dreambooth":
        raise UserError("the released scoring is that of DreamBooth's subjects; use the protocol dreambooth")
    for label, changes in plan.variants.items():
        registry.get_method(str(changes["method"]))
        try:
            _config(plan.base, changes)
        except UserError as error:
            raise UserError(f"variant {shown(label)}: {error}") from None
