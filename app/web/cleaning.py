"""What the page deletes for good: items of the bin with their photos, and folders of visitors who stay away."""

import contextlib
import os
import time
from pathlib import Path

import gradio as gr

from app.web.context import AppContext
from hra_diffusion import trash
from hra_diffusion.files import remove, sha256
from training.data.drafts import Draft
from training.runs import deletion


def delete_for_good(context: AppContext, key: str) -> None:
    """Delete an item of the bin, its photos unless another run uses them, and their copies in its owner's draft."""
    owner = context.binned(key)
    deleted = deletion.delete_for_good(key, context.output)
    for folder in context.folders_of(owner) if deleted else ():
        draft = Draft(folder / "draft")
        for photo in draft.read().photos:
            if sha256(draft.folder / "photos" / photo.file) in deleted:
                draft.remove(photo.file)


def delete_expired(context: AppContext) -> None:
    """Delete what has been in the bin for too long and, on a page for others, folders of visitors who stay away."""
    for key in trash.expired(context.output):
        delete_for_good(context, key)
    if not context.local:
        before = time.time() - context.keep_visitors_days * 86400
        for folder in (context.output / "visitors").glob("*"):
            if _last_use(folder) < before:
                remove(folder)


def note_visit(context: AppContext, request: gr.Request) -> None:
    """Note that a visitor, who may have a folder, is here."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(context.visitor_folder(request))


def _last_use(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
