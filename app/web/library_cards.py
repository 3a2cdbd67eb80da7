"""The Library tab's overview: the adapters as cards, and the bin."""

import functools
import time
from pathlib import Path

from markupsafe import Markup

from app.inference_session import InferenceSession
from app.web.context import AppContext
from app.web.html import empty_state, note, render
from hra_diffusion import library, pipeline, trash
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.library import BrokenAdapter, SavedAdapter
from training.runs import lookup


def show_cards(context: AppContext, search: str = "", chosen: str | None = None) -> Markup:
    """Return the adapters that match the search as cards, newest first."""
    files = [file for file in library.scan([context.output]) if context.person.may_see(context.owner(file.path))]
    if not files:
        return empty_state("No adapters yet", "Trained adapters appear here. You can also import a file below.")
    terms = search.casefold().split()
    matching = [file for file in files if all(term in _searchable(file) for term in terms)]
    if not matching:
        return note("No adapter matches the search.", "plain")
    found = [file for file in matching if isinstance(file, SavedAdapter)]
    broken = [file for file in matching if isinstance(file, BrokenAdapter)]
    found.sort(key=lambda saved: -saved.path.stat().st_mtime)
    return render("library_cards", cards=[_card(context, saved) for saved in found], chosen=chosen, broken=broken)


def _searchable(file: SavedAdapter | BrokenAdapter) -> str:
    if isinstance(file, BrokenAdapter):
        return file.path.name.casefold()
    info = file.info
    return f"{info.name} {info.method} {info.base} {info.subject}".casefold()


def _card(context: AppContext, saved: SavedAdapter) -> dict[str, object]:
    info, file = saved.info, saved.path.stat()
    return {
        "key": context.key(saved.path),
        "name": info.name,
        "method": method_title(info.method),
        "base": info.base,
        "size": f"{file.st_size / 1e6:.1f} MB",
        "date": time.strftime("%d %b %Y", time.localtime(file.st_mtime)),
        "sample": next(iter(lookup.samples_of(saved.path)), None),
        "incompatible": incompatibility(context, saved.path),
    }


def method_title(method: str) -> str:
    """Return a method's title, or the name itself for one that is not registered."""
    return registry.get_method(method).title if method in registry.method_names() else method


def incompatibility(context: AppContext, path: Path) -> str:
    """Return why an adapter is incompatible with the base model in use.

    "" if it is compatible, and while the base model is loading or generating.
    """
    session = context.session
    if not session.loaded or not session.lock.acquire(blocking=False):
        return ""
    try:
        return _incompatibility(session, session.base, path, path.stat().st_mtime_ns)
    finally:
        session.lock.release()


@functools.lru_cache(maxsize=500)
def _incompatibility(session: InferenceSession, base: str, path: Path, modified: int) -> str:
    return pipeline.incompatibility(read_info(path), session.pipe)


def show_bin(context: AppContext) -> Markup:
    """Return what the visitor has deleted and can still restore."""
    keys = [key for key in trash.keys(context.output) if context.person.may_change(context.binned(key))]
    return render("library_bin", entries=[(key, key.split("-", 1)[1]) for key in keys])
