"""Importing and exporting adapter files on the Library tab."""

import contextlib
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from app.inference_session import import_libraries
from app.web.context import AppContext
from app.web.html import render
from app.web.library_cards import incompatibility, method_title
from hra_diffusion import library
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.adapter_file import is_adapter_file, read, read_info
from hra_diffusion.errors import UserError
from hra_diffusion.files import remove
from training.runs import lookup, owners
from training.runs.owners import Owner

OWN, BUNDLE = "own", "kohya-bundle"
EXPORTS = {
    "As it is, for this program": OWN,
    "LoRA file, kohya’s layout": "kohya",
    "LoRA file with a trained trigger inside, for AUTOMATIC1111 and Forge": BUNDLE,
    "LoRA file, diffusers’ layout": "diffusers",
    "Folder for PEFT (.zip)": "peft",
    "Merged into the base model (large)": "merged",
}
"""Labels of the export formats."""
FORMAT_NAMES = {OWN: "as it is", "kohya": "kohya", "diffusers": "diffusers", "peft": "PEFT", "merged": "merged"}
"""Short names of the export formats."""
PLAIN_RANK = 32
"""Rank of the plain LoRA offered in place of a DoRA."""


def describe_file(context: AppContext, file: Path) -> list[str]:
    """Describe an adapter file of this or another program without importing it. Raises UserError."""
    if is_adapter_file(file):
        info = read(file)[0]
        subject = f" of “{info.subject}”" if info.subject else ""
        lines = [f"{info.name}: {method_title(info.method)}{subject}, for {info.base}.", incompatibility(context, file)]
        return [line for line in lines if line]
    import_libraries()
    from hra_diffusion import interop

    with context.session.lock:
        return interop.parse_adapter(context.session.pipe, file)[-1].lines


def import_file(context: AppContext, file: Path) -> tuple[Path, list[str]]:
    """Import an adapter file. Returns its new path, and the report on a file of another program.

    Files of other programs must fit the base model in use. Raises UserError for a file that is no adapter.
    """
    if is_adapter_file(file):
        with _owned_folder(context, read_info(file).name) as folder:
            return library.add_file(file, folder), []
    import_libraries()
    from hra_diffusion import interop

    with context.session.lock, _owned_folder(context, interop.name_for(file)) as folder:
        path, report = interop.import_adapter(context.session.pipe, file, folder, folder.name)
    return path, report.lines


@contextlib.contextmanager
def _owned_folder(context: AppContext, name: str) -> Iterator[Path]:
    """Yield a new folder of the visitor, numbered if its name is in use. It is deleted if the block fails."""
    folder = library.new_folder(name, context.output)
    owners.write(folder, Owner(owner=context.person.name))
    try:
        yield folder
    except BaseException:
        remove(folder)
        raise


def export_warning(context: AppContext, key: str, form: str) -> Markup:
    """Return a question to confirm an export that some programs load incorrectly, or "" if none does."""
    info = read_info(context.adapter_path(key))
    if info.method not in registry.method_names():
        return Markup("")
    import_libraries()
    from hra_diffusion.interop import compatibility

    problems = compatibility.incompatible_programs(info.method, _format(form), compatibility.family_of(info))
    return render("library_export_warning", problems=problems, rank=PLAIN_RANK) if problems else Markup("")


def export_file(
    context: AppContext, path: Path, form: str, folder: Path, lora_rank: int | None = None
) -> tuple[Path, list[str]]:
    """Write an adapter as one file into ``folder``. Returns its path and notes on its use. Raises UserError."""
    if form == OWN:
        return Path(shutil.copy2(path, folder)), []
    import_libraries()
    from hra_diffusion import interop
    from hra_diffusion.interop import compatibility

    with context.session.lock:
        pipe, (info,) = context.session.pipe, context.session.load_adapters([path])
        target = folder / (f"{path.stem}-{form}" + ("" if form == "peft" else ".safetensors"))
        sample = next(iter(lookup.samples_of(path)), None)
        done = interop.export(
            pipe, info.name, _format(form), target, lora_rank=lora_rank, info=info, sample=sample,
            bundle_embeddings=form == BUNDLE,
        )  # fmt: skip
        notes = compatibility.notes(pipe, info.name, done)
    exported = target
    if target.is_dir():
        exported = Path(shutil.make_archive(str(target), "zip", target))
    elif done.embeddings:
        exported = target.with_suffix(".zip")
        with zipfile.ZipFile(exported, "w") as archive:
            for file in (target, *done.embeddings):
                archive.write(file, file.name)
    lines = [f"Written: {done.shape}. Programs that load it:", *compatibility.lines(done)]
    return exported, [*lines, *notes, *compatibility.advice(info)]


def _format(form: str) -> Any:
    """Return the export format of a choice of ``EXPORTS``."""
    return "kohya" if form == BUNDLE else form


def require_idle(context: AppContext, key: str) -> None:
    """Raises UserError while the adapter is being trained: its folder must not move."""
    busy = context.queue.busy()
    if busy and context.adapter_path(key).is_relative_to(busy.folder.resolve()):
        raise UserError("this adapter is being trained; stop the run first")
