"""The Library tab's overview: the adapters as cards, and the bin."""

import functools
import time
from pathlib import Path
from typing import Any

from markupsafe import Markup

from app.inference_session import InferenceSession
from app.web.context import AppContext
from app.web.html import empty_state, note, render
from hra_diffusion import pipeline, trash
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.adapter_file import read_info
from training.runs import lookup

PAGE = 60
"""Number of cards that are shown at first, and that each press of "Show more" adds."""


def show_cards(context: AppContext, search: str = "", chosen: str | None = None, count: int = PAGE) -> Markup:
    """Return the adapters that match the search as cards, newest first, at most ``count``."""
    rows = context.library(search, count + 1)
    if not rows and search.strip():
        return note("No adapter matches the search.", "plain")
    if not rows:
        return empty_state("No adapters yet", "Trained adapters appear here. You can also import a file below.")
    shown = [row for row in rows[:count] if (context.output / row["path"]).is_file()]
    cards = [_card(context, row) for row in shown if not row["error"]]
    broken = [row for row in shown if row["error"]]
    more = count + PAGE if len(rows) > count else 0
    return render("library_cards", cards=cards, chosen=chosen, broken=broken, more=more)


def _card(context: AppContext, row: Any) -> dict[str, object]:
    path = context.output / row["path"]
    return {
        "key": row["path"],
        "name": row["name"],
        "method": method_title(row["method"]),
        "base": row["base"],
        "size": f"{row['size'] / 1e6:.1f} MB",
        "date": time.strftime("%d %b %Y", time.localtime(row["modified"] / 1e9)),
        "sample": next(iter(lookup.samples_of(path)), None),
        "incompatible": incompatibility(context, path),
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
