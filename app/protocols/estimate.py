"""How long the missing cells of a benchmark take on this machine.

The time of a variant's training is that of its finished cells or else follows from a measurement (see
``training.runs.calibration``), as does the time of a picture. What was not measured is left out, and named.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from app.protocols.cells import DRIFT_PROMPTS, Cell, Result, missing_cells, read_results
from app.protocols.plan import BASE, WITHOUT_SAMPLES, Plan
from app.protocols.subjects import Subject
from training.config import TrainConfig
from training.runs import calibration
from training.runs.calibration import Calibration
from training.runs.progress import rough_duration
from training.settings.monitoring import SAMPLE_STEPS

Measure = Callable[[TrainConfig], Calibration | None]
"""Returns the measurement of a run, or None."""


@dataclass(frozen=True)
class Estimate:
    """What the missing cells of a benchmark take.

    Attributes:
        seconds: by missing cell, as far as it is known.
        runs: adapters to train, by variant.
        pictures: to generate.
        unknown: the variants whose time is not known, each with the reason, "" if it is not measured yet.
    """

    seconds: dict[Cell, float]
    runs: dict[str, int]
    pictures: int
    unknown: dict[str, str]

    @property
    def total(self) -> float | None:
        """Seconds of all missing cells; None if those of a variant are unknown."""
        return None if self.unknown else sum(self.seconds.values())

    def __str__(self) -> str:
        """Return what is missing and how long it takes."""
        cells, runs = _count(len(self.seconds), "cell"), _count(sum(self.runs.values()), "run")
        what = f"{cells} to measure: {runs} to train, {_count(self.pictures, 'picture')} to generate"
        known = sum(self.seconds.values())
        if not self.unknown:
            return f"{what}; about {rough_duration(known)} on this machine."
        if not known and not any(self.unknown.values()):
            return f"{what}; how long that takes is not measured yet."
        names = ", ".join(name + (f" ({reason})" if reason else "") for name, reason in self.unknown.items())
        return f"{what}; about {rough_duration(known)} on this machine without {names}, whose time is not measured."


def estimate(
    folder: Path, plan: Plan, subjects: Mapping[str, Subject], measure: Measure, results: Sequence[Result] | None = None
) -> Estimate:
    """Return what the missing cells take.

    Args:
        folder: of the benchmark.
        measure: is asked for the first run of each variant that is to be trained.
        results: of the finished cells; None to read them.
    """
    missing = missing_cells(plan, folder)
    results = read_results(plan, folder) if results is None else results
    untrained = [cell for cell in missing if _is_trained_by(folder, cell)]
    configs = {v: plan.config(subjects[plan.subjects[0]], v, plan.seeds[0]) for v in plan.variants}
    measured = {v: measure(configs[v]) for v in dict.fromkeys(cell.variant for cell in untrained)}
    picture = _seconds_per_picture(results, plan, configs, measured)
    seconds, unknown = {}, dict[str, str]()
    for cell in missing:
        found = measured.get(cell.variant)
        seconds[cell] = (picture or 0.0) * pictures_of(plan, subjects, cell)
        if picture is None:
            unknown["the pictures"] = ""
        if cell in untrained:
            trained = _seconds_of_training(cell.variant, results, configs[cell.variant], found, subjects[cell.subject])
            seconds[cell] += trained or 0.0
            if trained is None:
                unknown[cell.variant] = found.error if found else ""
    runs = Counter(cell.variant for cell in untrained)
    return Estimate(seconds, dict(runs), sum(pictures_of(plan, subjects, cell) for cell in missing), unknown)


def pictures_of(plan: Plan, subjects: Mapping[str, Subject], cell: Cell) -> int:
    """Return how many pictures a cell draws, with those of the class."""
    prompts = len(subjects[cell.subject].prompts)
    return prompts * plan.pictures + (0 if cell.variant == BASE else min(DRIFT_PROMPTS, prompts))


def _is_trained_by(folder: Path, cell: Cell) -> bool:
    """Whether a missing cell has to train its adapter."""
    return cell.adapter is not None and cell == cell.trained and not (folder / cell.adapter).is_file()


def _seconds_of_training(
    variant: str, results: Iterable[Result], config: TrainConfig, found: Calibration | None, subject: Subject
) -> float | None:
    own = [r.costs["seconds"] for r in results if r.cell.variant == variant and "seconds" in r.costs]
    start = found.start if found else 0.0
    if own:
        return start + fmean(own)
    run = config.model_copy(update=WITHOUT_SAMPLES)
    return None if found is None or found.error else start + found.seconds(run, len(subject.photos))


def _seconds_per_picture(
    results: Iterable[Result], plan: Plan, configs: Mapping[str, TrainConfig],
    measured: Mapping[str, Calibration | None],
) -> float | None:  # fmt: skip
    """Return the mean over the finished cells, or what follows from the samples of measured runs."""
    if own := [result.costs["seconds per picture"] for result in results]:
        return fmean(own)
    rounds = [
        found.samples / len(configs[variant].sample_texts) * plan.denoising_steps / SAMPLE_STEPS
        for variant, found in measured.items()
        if found and found.samples
    ]
    return fmean(rounds) if rounds else None


def stored(output: Path) -> Measure:
    """Return the stored measurements of an output folder."""
    return lambda config: calibration.load(output, config)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
