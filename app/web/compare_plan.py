"""What the Compare tab compares: reading its values, and generating the comparison."""

import functools
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from PIL import Image
from pydantic import Field

from app.inference_session import Preview
from app.web.context import AppContext
from app.web.values import Flag, Keys, Seed, Steps, Strength, Text, Whole, row
from hra_diffusion import library
from hra_diffusion.adapters.adapter_file import AdapterInfo, read_info
from hra_diffusion.comparison.compare import BASE, Comparison, Variant, compare, drift_pairs
from hra_diffusion.comparison.storage import PHOTO_SIDE
from hra_diffusion.errors import UserError
from hra_diffusion.generation.previews import OnStep
from hra_diffusion.generation.requests import Settings
from hra_diffusion.generation.subjects import with_subject
from hra_diffusion.names import first_free
from training.runs.lookup import photos_of

MAX_SAMPLES = 120


@dataclass(frozen=True)
class Plan:
    """What to compare: one variant per adapter, and the base model if ``base`` is set."""

    files: tuple[Path, ...]
    names: tuple[str, ...]
    infos: tuple[AdapterInfo, ...]
    base: bool
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    strength: float
    settings: Settings
    drift: bool = False
    shows_photos: bool = True
    """Whether the visitor may see the photos of the first adapter."""

    @functools.cached_property
    def photos(self) -> list[Image.Image]:
        """Training photos of the first adapter, if the visitor may see them."""
        return photos_of(self.files[0], PHOTO_SIDE) if self.shows_photos else []

    @property
    def labels(self) -> list[str]:
        """Labels of the variants; equal names get a number."""
        names = [BASE] * self.base
        for name in self.names:
            names.append(first_free(name, names.__contains__))
        return names

    @property
    def sample_count(self) -> int:
        """Number of samples in the grid."""
        return (len(self.files) + self.base) * len(self.prompts) * len(self.seeds)

    @property
    def image_count(self) -> int:
        """Number of images to generate: the samples, and those that measure drift."""
        variants = self.variants([{str(number): 1.0} for number in range(len(self.files))])
        pairs = drift_pairs(variants, self.prompts, self.seeds[0]) if self.drift else {}
        return self.sample_count + len({request for pair in pairs.values() for request in pair})

    def variants(self, strengths: Sequence[Mapping[str, float]]) -> list[Variant]:
        """Return the variants, given each adapter's name on the pipeline with its strength."""
        first_noun = [self.infos[0].class_noun] if self.infos else [""]
        subjects = first_noun * self.base + [info.subject for info in self.infos]
        nouns = first_noun * self.base + [info.class_noun for info in self.infos]
        costs = [{}] * self.base + [library.training_costs(*pair) for pair in zip(self.files, self.infos, strict=True)]
        adapters = [{}] * self.base + list(strengths)
        return [Variant(*fields) for fields in zip(self.labels, adapters, subjects, nouns, costs, strict=True)]


class CompareValues(NamedTuple):
    """The tab's values, by name."""

    adapters: Keys
    base: Flag
    prompts: Text
    seed: Annotated[Seed, Field(ge=0)] | None
    seeds: Annotated[Whole, Field(ge=1, le=MAX_SAMPLES)]
    strength: Strength
    steps: Steps | None
    drift: Flag


def make_plan(context: AppContext, values: Sequence[Any]) -> Plan:
    """Read the tab's values. Raises UserError for missing values and for too many samples."""
    given = row(CompareValues, values)
    files = tuple(context.adapter_path(key) for key in given.adapters)
    prompts = tuple(line.strip() for line in given.prompts.splitlines() if line.strip())
    if not files:
        raise UserError("Choose at least one adapter. If there is none, train one first.")
    if not prompts:
        raise UserError("Write at least one prompt.")
    infos = tuple(read_info(file) for file in files)
    prompts = tuple(insert_placeholder(prompt, infos[0]) for prompt in prompts)
    first = given.seed or 0
    names = tuple(library.display_name(file) for file in files)
    plan = Plan(
        files, names, infos, given.base, prompts, tuple(range(first, first + given.seeds)), given.strength,
        Settings(steps=given.steps or None), given.drift, context.person.may_change(context.owner(files[0])),
    )  # fmt: skip
    if plan.sample_count > MAX_SAMPLES:
        raise UserError(
            f"That makes {plan.sample_count} pictures; at most {MAX_SAMPLES} are possible. "
            "Choose fewer prompts, seeds or adapters."
        )
    return plan


def insert_placeholder(prompt: str, info: AdapterInfo) -> str:
    """Replace an adapter's subject ("sks dog") by ``{subject}``, or else its class noun, or else put it in front."""
    if info.subject:
        prompt = re.sub(rf"(?<!\w){re.escape(info.subject)}(?!\w)", "{subject}", prompt, flags=re.IGNORECASE)
    return with_subject(prompt, "{subject}", info.class_noun)


def run_comparison(context: AppContext, plan: Plan, cancel: threading.Event) -> Iterator[Preview | Comparison]:
    """Yield previews of the samples, then the comparison."""
    session = context.session

    def run(on_step: OnStep) -> Comparison:
        infos = session.load_adapters(list(plan.files))
        variants = plan.variants([{info.name: plan.strength} for info in infos])
        return compare(
            session.pipe, variants, plan.prompts, plan.seeds, plan.settings, plan.photos, on_step=on_step,
            clip=session.clip, drift=plan.drift,
        )  # fmt: skip

    for update in session.watch(run, plan.image_count, cancel):
        yield update if isinstance(update, Preview) else update.value
