"""Which files the page serves, and to whom: images, reports and exports, never a folder as a whole."""

import re
from pathlib import Path

from app.web.context import AppContext
from training.runs import owners

SAMPLES = re.compile(r"(?P<folder>[^./][^/]*)/samples/[^/]+\.png")
"""Sample images of a run, for whoever may see the run."""
OWN = re.compile(
    r"visitors/(?P<folder>[0-9a-f]{32})/"
    r"(pictures/[^/]+\.png|grids/\d+\.png|benchmark/\d+/(report\.html|results\.csv)|compare/\d+/(pictures/[^/]+\.png|grid\.png|report\.html|pictures\.zip))"
)
"""What a visitor has made. Only the visitor sees it."""
PREPARED = re.compile(r"\.gradio/[0-9a-f]{64}/[^/]+")
"""Gradio's copies of uploads and downloads. The name of the folder is a hash of the content, which nobody can guess."""


def is_served(context: AppContext, path: str, own: Path) -> bool:
    """Return whether a visitor's request for a file is answered. ``own`` is the visitor's folder."""
    try:
        name = context.key(Path(path))
    except (ValueError, OSError, RuntimeError):  # outside, not a path, a circle of links
        return False
    if found := OWN.fullmatch(name):
        return found["folder"] == own.name
    if found := SAMPLES.fullmatch(name):
        return context.person.may_see(owners.read(context.output / found["folder"]))
    return bool(PREPARED.fullmatch(name))
