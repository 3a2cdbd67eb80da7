"""Which files the page serves, and to whom: images, reports and exports, never a folder as a whole."""

import re
from pathlib import Path

SAMPLES = re.compile(r"[^.][^/]*/samples/[^/]+\.png")
"""Sample images of a run, which all visitors see."""
OWN = re.compile(
    r"visitors/(?P<folder>[0-9a-f]{32})/"
    r"(pictures/[^/]+\.png|compare/\d+/(pictures/[^/]+\.png|grid\.png|report\.html|pictures\.zip))"
)
"""What a visitor has made. Only the visitor sees it."""
PREPARED = re.compile(r"\.gradio/[0-9a-f]{64}/[^/]+")
"""Gradio's copies of uploads and downloads. The name of the folder is a hash of the content, which nobody can guess."""


def is_served(output: Path, path: str, own: Path) -> bool:
    """Return whether a request for a file is answered. ``own`` is the folder of the visitor who asks."""
    try:
        name = Path(path).resolve().relative_to(output.resolve()).as_posix()
    except (ValueError, OSError, RuntimeError):  # outside, not a path, a circle of links
        return False
    if found := OWN.fullmatch(name):
        return found["folder"] == own.name
    return bool(SAMPLES.fullmatch(name) or PREPARED.fullmatch(name))
