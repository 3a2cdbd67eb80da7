"""How much of the machine one person may use on a page that others reach. Admins, and the local person, use it all."""

import contextlib
import functools
import time
from pathlib import Path

import gradio as gr

from app.web.benchmark_queue import ACTIVE
from app.web.context import AppContext
from app.web.events import sender
from hra_diffusion import trash
from hra_diffusion.errors import UserError
from training.runs import owners
from training.runs.deletion import photo_folders

HOUR = 3600.0


def require_turns(context: AppContext, runs: int = 1) -> None:
    """Raise UserError if so many more of the visitor's runs may not wait. Call it in a block that writes the index."""
    person, most = context.person, context.limits.waiting_runs
    waiting = context.queue.index.value(
        "SELECT count(*) FROM folders WHERE owner = ? AND status = 'waiting'", person.name
    )
    if not person.is_admin and waiting + runs > most:
        raise UserError(
            f"{waiting} of your runs are waiting, and at most {most} may; wait until one has started, or cancel one"
        )


def count_images(context: AppContext, request: gr.Request, images: int) -> None:
    """Count images that the visitor requests. Raises UserError, and counts none, beyond the limit of an hour.

    Clients without cookies count by their address.
    """
    person, most, now = context.person, context.limits.images_per_hour, time.time()
    if person.is_admin:
        return
    visitor = who if (who := sender(request)).startswith("address ") else person.name
    with context.queue.index.writing() as database:
        database.execute("DELETE FROM requested WHERE time NOT BETWEEN ? AND ?", (now - HOUR, now))
        counted = "SELECT coalesce(sum(images), 0), min(time) FROM requested WHERE visitor = ?"
        before, first = database.execute(counted, (visitor,)).fetchone()
        if before + images > most:
            minutes = round(((first or now) + HOUR - now) / 60) or 1
            raise UserError(
                f"{before} pictures in an hour, and {images} more: at most {most} are yours; choose fewer, or "
                f"try again in {minutes} min"
            )
        database.execute("INSERT INTO requested VALUES (?, ?, ?)", (visitor, images, now))


def require_no_benchmark(context: AppContext, visitor: Path) -> None:
    """Raise UserError if a benchmark of the visitor waits or runs. ``visitor``: their folder."""
    if not context.person.is_admin and has_benchmark(context, visitor):
        raise UserError("a benchmark of yours waits or runs already; wait until it ends, or stop it")


def has_benchmark(context: AppContext, visitor: Path) -> bool:
    """Whether a benchmark of the visitor waits or runs."""
    return any(context.benchmarks.state(folder).status in ACTIVE for folder in context.benchmarks.folders(visitor))


def require_space(context: AppContext, request: gr.Request) -> None:
    """Raise UserError if the visitor's files exceed their share. They are measured once a minute."""
    person, most = context.person, context.limits.gigabytes
    if person.is_admin:
        return
    used = _bytes(context.output, person.name, context.visitor_folder(request), int(time.monotonic() // 60)) / 1e9
    if used > most:
        raise UserError(
            f"your runs, photos and pictures take {used:.1f} GB, and at most {most:g} GB are yours; move runs and "
            "adapters to the bin in the Library, and delete them there"
        )


@functools.lru_cache(maxsize=1000)
def _bytes(output: Path, name: str, visitor: Path, minute: int) -> int:
    """Return the size of a person's runs and adapters, also in the bin, of their photos, and of the own folder."""
    folders = [path for path in (*output.glob("*/"), *(output / trash.FOLDER).glob("*/")) if path.is_dir()]
    own = {path for path in folders if owners.read(path).owner == name}
    photos = {folder for path in own for folder in photo_folders(path, output)}
    return sum(_size(folder) for folder in own | photos | {visitor})


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size
