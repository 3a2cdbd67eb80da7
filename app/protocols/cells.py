"""Cells: one subject, variant and seed each. A cell is trained, drawn, scored and stored on its own.

    cells/{subject}/{variant}/{seed}/adapter.safetensors
    cells/{subject}/{variant}/{seed}/lora.safetensors          the adapter, exported and imported again, if drawn
    cells/{subject}/{variant}/{seed}/checkpoints/000070.safetensors
    cells/{subject}/{variant}/{seed}/pictures/00-0.png         number of the prompt and of the picture
    cells/{subject}/{variant}/{seed}/cell.json                 written last: costs and the figures of every picture

A variation of a trained cell is a cell without training: an earlier checkpoint, another strength, or the exported LoRA
at that strength. It lies below the trained one, in ``step-000070/``, ``strength-0.50/`` or ``lora-0.50/``.
"""

import dataclasses
import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from app.inference_session import Cancelled
from app.protocols.plan import BASE, NOISE_SEED, WITHOUT_SAMPLES, Plan
from app.protocols.scoring import Scorer
from app.protocols.subjects import Subject
from hra_diffusion import library, pipeline
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.files import move, remove, sha256, write_text
from hra_diffusion.generation.png import read_image, save_png, slug
from hra_diffusion.generation.previews import OnStep
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch
from training.config import TrainConfig
from training.runs.follow import wait_for
from training.runs.owners import UNOWNED, Owner
from training.runs.queue import OVER, Queue
from training.runs.run_folder import RunError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

MEAN = "mean "
"""Before the name of a figure where it is the mean of a cell: the figure "subject" is not the cell's subject."""
DRIFT_PROMPTS = 8
"""Prompts that are also drawn without the trigger, with the adapter, to measure its effect on the class."""


@dataclass(frozen=True)
class Cell:
    """A subject, a variant and a training seed, or a variation of such a trained cell.

    Attributes:
        strength: of the adapter.
        step: of the checkpoint; None for the finished adapter.
        exported: whether the adapter is the LoRA that other programs get, at a strength that scales it linearly.
    """

    subject: str
    variant: str
    seed: int
    strength: float = 1.0
    step: int | None = None
    exported: bool = False

    def __str__(self) -> str:
        return ", ".join([self.subject, self.variant, f"seed {self.seed}", *filter(None, [self.variation])])

    @property
    def variation(self) -> str:
        """What tells a variation from the trained cell; "" for that one."""
        if self.step is not None:
            return f"step-{self.step:06d}"
        if self.exported:
            return f"lora-{self.strength:.2f}"
        return "" if self.strength == 1 else f"strength-{self.strength:.2f}"

    @property
    def folder(self) -> Path:
        """The folder of the cell in that of the benchmark."""
        variant = f"{slug(self.variant)}-{_digest(self.variant)}"
        return Path("cells", slug(self.subject), variant, str(self.seed), self.variation)

    @property
    def trained(self) -> "Cell":
        """The cell that trains the adapter."""
        return Cell(self.subject, self.variant, self.seed)

    @property
    def adapter(self) -> Path | None:
        """The adapter's file in the folder of the benchmark; None for the base model."""
        if self.variant == BASE:
            return None
        if self.step is not None:
            return self.trained.folder / _checkpoint(self.step)
        return self.trained.folder / ("lora.safetensors" if self.exported else "adapter.safetensors")


@dataclass(frozen=True)
class Result:
    """A finished cell: figures of its pictures by name, costs of its adapter, and hash of its file."""

    cell: Cell
    figures: dict[str, list[float]]
    costs: dict[str, float]
    sha256: str = ""


def _checkpoint(step: int) -> Path:
    return Path("checkpoints", f"{step:06d}.safetensors")


def _digest(text: str) -> str:
    """Return digits that tell apart labels with the same slug."""
    return hashlib.sha256(text.encode()).hexdigest()[:4]


def cells_of(plan: Plan) -> Iterator[Cell]:
    """Yield all cells, the base model's first, seed by seed, so that a part of them is a fair comparison too.

    The variations come last.
    """
    trained = [
        Cell(subject, variant, seed)
        for seed in plan.seeds
        for subject in plan.subjects
        for variant in (BASE, *plan.variants)
    ]
    yield from trained
    variations = {
        (variant, seed): list(_variations(plan, variant, seed)) for variant in plan.variants for seed in plan.seeds
    }
    for cell in trained:
        for variation in variations.get((cell.variant, cell.seed), ()):
            yield dataclasses.replace(cell, **variation)


def _variations(plan: Plan, variant: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield what the variations of a variant's trained cells change: checkpoints and, at the first seed, strengths."""
    for step in plan.checkpoint_steps(variant):
        yield {"step": step}
    for strength in plan.strengths if seed == plan.seeds[0] else ():
        if strength not in (0, 1):
            yield {"strength": strength}
            if plan.is_orthogonal(variant):
                yield {"strength": strength, "exported": True}


@dataclass(frozen=True)
class Benchmark:
    """A plan in its folder.

    Attributes:
        output: the folder of the training runs.
        load_base: returns the base model. A cell leaves no adapter on it.
        owner: of the training runs.
        cancelled: ends the training of a cell when it is set.
        jobs: settings of the runs that say where they train, if not on this machine.
    """

    folder: Path
    output: Path
    plan: Plan
    subjects: dict[str, Subject]
    load_base: "Callable[[], StableDiffusionPipeline]"
    scorer: Scorer
    batch_size: int = 8
    owner: Owner = UNOWNED
    cancelled: threading.Event = field(default_factory=threading.Event)
    jobs: Mapping[str, Any] = field(default_factory=dict)

    def missing(self) -> list[Cell]:
        """Return the cells that have no result."""
        return missing_cells(self.plan, self.folder)

    def results(self) -> list[Result]:
        """Return the results of the finished cells. A damaged one counts as missing."""
        return read_results(self.plan, self.folder)

    def run(self, cell: Cell) -> Result:
        """Train, draw and score a cell. Raises RunError if its training fails."""
        self.train(cell)
        return self.measure(cell)

    def train(self, cell: Cell) -> None:
        """Train the adapter of a cell, unless it is there. Raises RunError if that fails, or Cancelled."""
        folder = self.folder / cell.trained.folder
        if cell.adapter and not (folder / "adapter.safetensors").is_file():
            self._train(cell.trained, folder)

    def measure(self, cell: Cell, on_step: OnStep | None = None) -> Result:
        """Draw and score a trained cell, and store its result. ``on_step``: see ``generate_batch``."""
        folder, subject = self.folder / cell.folder, self.subjects[cell.subject]
        adapter = self._adapter(cell)
        start = time.perf_counter()
        images, of_class = self._draw(cell, subject, adapter, on_step)
        seconds = time.perf_counter() - start
        plain = None if of_class is None else (of_class, self._drawn_by_base(cell)[:: self.plan.pictures])
        figures = self.scorer.figures(subject, images, self.plan.pictures, plain, released=cell.strength == 1)
        costs = {"seconds per picture": seconds / (len(images) + len(of_class or ()))}
        costs |= library.training_costs(adapter, read_info(adapter)) if adapter else {}
        result = Result(cell, figures, costs, sha256(adapter) if adapter else "")
        write_text(folder / "cell.json", json.dumps(dataclasses.asdict(result), indent=1))
        return result

    def queue_all(self, cells: Sequence[Cell]) -> None:
        """Queue the runs that cells need, for a cluster to train them side by side."""
        for cell in dict.fromkeys(cell.trained for cell in cells if cell.variant != BASE):
            if not (self.folder / cell.folder / "adapter.safetensors").is_file():
                self._queue(cell)
        Queue(self.output).start()

    def cancel_all(self, cells: Sequence[Cell]) -> None:
        """Take the runs of cells out of the queue, and stop those that train."""
        queue = Queue(self.output)
        for name in {self._config(cell).name for cell in cells if cell.variant != BASE}:
            if (self.output / name).exists():
                queue.end(name)

    def _adapter(self, cell: Cell) -> Path | None:
        """Return the adapter of a trained cell, exported if that is missing. Raises RunError."""
        if cell.adapter is None:
            return None
        trained, adapter = self.folder / cell.trained.folder, self.folder / cell.adapter
        if cell.exported and not adapter.is_file():
            self._export(trained / "adapter.safetensors", adapter)
        if not adapter.is_file():
            raise RunError(f"the run ended before step {cell.step}, or {trained} is of a benchmark without checkpoints")
        return adapter

    def _export(self, adapter: Path, target: Path) -> None:
        """Export an adapter for other programs, and import it again as the LoRA or DoRA that they get."""
        from hra_diffusion import interop  # slow

        pipe = self.load_base()
        name = library.load_unique(pipe, adapter).name
        with tempfile.TemporaryDirectory() as folder:
            done = interop.export(pipe, name, "kohya", Path(folder, "exported.safetensors"))
            pipeline.unload(pipe, name)
            interop.import_adapter(pipe, done.path, target.parent, target.stem, embeddings=done.embeddings)

    def _config(self, cell: Cell) -> TrainConfig:
        config = self.plan.config(self.subjects[cell.subject], cell.variant, cell.seed)
        return config.model_copy(update=WITHOUT_SAMPLES | dict(self.jobs))

    def _queue(self, cell: Cell) -> str:
        """Queue the run of a cell, unless it is, and return its name."""
        queue, config = Queue(self.output), self._config(cell)
        if not (self.output / config.name).exists():
            queue.add(config, self.owner)
        if queue.job(config.name).status in OVER:
            queue.resume(config.name)
        return config.name

    def _train(self, cell: Cell, folder: Path) -> None:
        """Train the adapter of a cell in the queue, and move it to a folder. Ctrl-C or ``cancelled`` stops it."""
        queue, name = Queue(self.output), self._queue(cell)
        try:
            job = wait_for(queue, name, cancelled=self.cancelled)
            if self.cancelled.is_set() and job.status != "finished":
                raise Cancelled("stopped")
        except (KeyboardInterrupt, Cancelled) as stopped:
            queue.end(name)
            if isinstance(stopped, Cancelled):
                wait_for(queue, name)  # until it has saved its state
            raise
        if job.status != "finished":
            raise RunError(f"the run {name} {job.status}: {job.reason or 'it was stopped'}")
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for step in self.plan.checkpoint_steps(cell.variant):
            if (checkpoint := job.run.checkpoint_folder(step) / "adapter.safetensors").is_file():  # else stopped early
                move(checkpoint, folder / _checkpoint(step))
        move(job.run.adapter, folder / "adapter.safetensors")
        remove(job.run.folder)
        queue.index.forget(name)

    def _draw(
        self, cell: Cell, subject: Subject, adapter: Path | None, on_step: OnStep | None
    ) -> tuple[list[Image.Image], list[Image.Image] | None]:
        """Draw and store the pictures of all prompts. Return them, and with an adapter those of the class noun."""
        pipe = self.load_base()
        active = ((library.load_unique(pipe, adapter).name, cell.strength),) if adapter else ()
        name = f"{self.plan.trigger(cell.variant)} {subject.class_noun}" if adapter else subject.class_noun
        requests = [
            Request(prompt.text.replace("{subject}", name), self._noise(cell, number, picture), active)
            for number, prompt in enumerate(subject.prompts)
            for picture in range(self.plan.pictures)
        ]
        of_class = [
            Request(prompt.text.replace("{subject}", subject.class_noun), self._noise(cell, number, 0), active)
            for number, prompt in enumerate(subject.prompts[:DRIFT_PROMPTS])
        ]
        settings = Settings(steps=self.plan.denoising_steps)
        try:
            images = generate_batch(pipe, requests + (of_class if adapter else []), settings, self.batch_size, on_step)
        finally:
            for loaded, _ in active:
                pipeline.unload(pipe, loaded)
        drawn, plain = images[: len(requests)], images[len(requests) :]
        for index, image in enumerate(drawn):
            save_png(image, self.folder / cell.folder / "pictures" / self._file(index))
        return drawn, plain if adapter else None

    def _noise(self, cell: Cell, prompt: int, picture: int) -> int:
        """Return the seed of a picture's noise, which is the same for every variant."""
        return NOISE_SEED * (cell.seed + 1) + prompt * self.plan.pictures + picture

    def _file(self, index: int) -> str:
        prompt, picture = divmod(index, self.plan.pictures)
        return f"{prompt:02d}-{picture}.png"

    def pictures(self, cell: Cell) -> list[Image.Image]:
        """Return the stored pictures of a cell. Raises RunError if one can't be read."""
        count = len(self.subjects[cell.subject].prompts) * self.plan.pictures
        found = [read_image(self.folder / cell.folder / "pictures" / self._file(index)) for index in range(count)]
        images = [image for image in found if image is not None]
        if len(images) < count:
            raise RunError(
                f"{self.folder / cell.folder} lacks pictures; delete this folder and run the benchmark again"
            )
        return images

    def _drawn_by_base(self, cell: Cell) -> list[Image.Image]:
        return self.pictures(Cell(cell.subject, BASE, cell.seed))


def missing_cells(plan: Plan, folder: Path) -> list[Cell]:
    """Return the cells of a plan that have no result in its folder."""
    return [cell for cell in cells_of(plan) if not (folder / cell.folder / "cell.json").is_file()]


def read_result(folder: Path, cell: Cell) -> Result | None:
    """Return the result of a cell, or None if it is missing or damaged."""
    from hra_diffusion import records

    result = records.read(folder / cell.folder / "cell.json", Result, None)
    return result if result and result.cell == cell else None


def read_results(plan: Plan, folder: Path) -> list[Result]:
    """Return the results of the finished cells of a plan. A damaged one counts as missing."""
    return [result for cell in cells_of(plan) if (result := read_result(folder, cell))]


def facts(result: Result) -> dict[str, Any]:
    """Return a result as a flat row: subject, variant, seed, variation, mean figures (after ``MEAN``) and costs."""
    means = {MEAN + name: sum(values) / len(values) for name, values in result.figures.items() if values}
    return {**dataclasses.asdict(result.cell), **means, **result.costs, "sha256": result.sha256}
