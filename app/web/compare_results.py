"""The Compare tab's results: the grid of images, saved comparisons, downloads."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from app.web.compare_plan import Plan
from app.web.html import note, render
from hra_diffusion.comparison import report
from hra_diffusion.comparison.compare import Comparison
from hra_diffusion.comparison.statistics import score_summary
from hra_diffusion.comparison.storage import save_comparison
from hra_diffusion.errors import UserError
from hra_diffusion.files import atomic_path

DOWNLOADS = {"grid.png": "Grid as a picture", "report.html": "Report in one file", "pictures.zip": "All pictures"}


def show_previews(plan: Plan, previews: Mapping[int, Image.Image]) -> Markup:
    """Return the grid of a comparison in progress; samples without a preview are blank."""
    return _grid(plan.labels, plan.prompts, plan.seeds, previews, plan.photos)


def show_saved(folder: Path, comparison: Comparison) -> Markup:
    """Return the grid of a saved comparison with its scores, means and notes."""
    labels = [variant.label for variant in comparison.variants]
    scores = {
        index: score_summary(sample.score).split(" · ")
        for index, sample in enumerate(comparison.samples)
        if sample.score
    }
    means = report.means(comparison, titled=bool(comparison.photos))
    images = dict(enumerate(_sample_files(folder)))
    grid = _grid(labels, comparison.prompts, comparison.seeds, images, comparison.photos, scores, means)
    return note(comparison.notes, "plain") + grid


def _grid(
    labels: Sequence[str],
    prompts: Sequence[str],
    seeds: Sequence[int],
    images: Mapping[int, Image.Image | Path],
    photos: Sequence[Image.Image],
    scores: Mapping[int, Sequence[str]] | None = None,
    means: str = "",
) -> Markup:
    """Return a table of images with one row per prompt and seed; ``images`` and ``scores`` by sample index."""
    indices = range(len(labels) * len(prompts) * len(seeds))
    return render(
        "compare_grid", labels=labels, prompts=prompts, seeds=seeds, photos=photos[: len(prompts) * len(seeds)],
        images=[images.get(index) for index in indices], means=means,
        scores=[(scores or {}).get(index) for index in indices],
    )  # fmt: skip


def save(comparison: Comparison, folder: Path) -> None:
    """Save the comparison with its report and an archive of its images."""
    save_comparison(comparison, folder)
    report.write(comparison, folder / "report.html")
    with atomic_path(folder / "pictures.zip") as temporary:
        shutil.make_archive(str(temporary.with_suffix("")), "zip", folder / "pictures")


def show_downloads(folder: Path) -> Markup:
    """Return links to the files of a saved comparison."""
    return render("compare_downloads", folder=folder, files=DOWNLOADS)


def saved(folder: Path) -> list[Path]:
    """Return the folders of a visitor's comparisons, newest first."""
    return sorted((path.parent for path in folder.glob("compare/[0-9]*/results.json")), reverse=True)


def latest(folder: Path) -> Path | None:
    """Return the folder of a visitor's latest comparison."""
    return next(iter(saved(folder)), None)


def overlay_images(folder: Path, comparison: Comparison, row: int, left: str, right: str) -> tuple[str, str]:
    """Return the files of two variants' images in a row, for the overlay. Raises UserError if there are none."""
    labels, files = [variant.label for variant in comparison.variants], _sample_files(folder)
    if not {left, right} <= {*labels} or row >= len(files) // len(labels):
        raise UserError("this comparison has no such pictures; reload the page")
    first, second = (str(files[row * len(labels) + labels.index(label)]) for label in (left, right))
    return first, second


def _sample_files(folder: Path) -> list[Path]:
    """Return the images of a saved comparison in the order of its samples."""
    return sorted((folder / "pictures").glob("[!.]*.png"))
