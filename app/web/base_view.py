"""What the page shows about base models: the purpose of the one in use, known ones, one on the hub, offline advice."""

import filecmp
from typing import Any

import gradio as gr
from markupsafe import Markup

from app.web.context import AppContext
from app.web.html import render
from app.web.train_photos import SAMPLE_SUBJECTS, sample_photos
from hra_diffusion.models import hub
from hra_diffusion.models.hub import format_size
from hra_diffusion.models.sources import TOYBOX, base_name
from training.data.drafts import Draft

TOYBOX_PURPOSE = (
    "Toybox draws a small toy world at 128 px: use it to try the methods and to learn. For your photos choose Stable "
    "Diffusion."
)
SHARED = (
    "Others can reach this page, so only the base models listed when it was started can be used. To add one, start it "
    f"with: hra-diffusion app --base toybox {hub.SUGGESTIONS[0]}"
)


def show_notice(context: AppContext, draft: Draft) -> tuple[Markup, Any]:
    """Return what the base model in use is for, and an update of the button that opens the chooser.

    Both stand out if the visitor has photos of their own and the base model is toybox.
    """
    session = context.session
    toybox = session.base == TOYBOX
    warn = toybox and not only_samples(draft)
    size = f"{context.resolution} px" if session.loaded else "loaded when first needed"
    purpose = TOYBOX_PURPOSE if toybox else f"{size}, {session.dtype}."
    text = render("base_notice", warn=warn, name=base_name(session.base), purpose=purpose)
    if warn:
        return text, gr.update(value="Choose Stable Diffusion", variant="primary", visible=context.may_configure)
    return text, gr.update(value="Choose a base model", variant="secondary", visible=context.may_configure)


def only_samples(draft: Draft) -> bool:
    """Whether all photos of a draft, if any, are bundled sample photos."""
    samples = [photo for name in SAMPLE_SUBJECTS for photo in sample_photos(name)]
    files = [draft.folder / "photos" / photo.file for photo in draft.read().photos]
    return all(any(filecmp.cmp(file, sample, shallow=False) for sample in samples) for file in files)


def show_known(context: AppContext) -> Markup:
    """Return the base models that can be used at once, each with a button."""
    cached = {base.name: format_size(base.size) for base in hub.cached_bases()} if context.local else {}
    about = {TOYBOX: "built in, a toy world at 128 px"}
    names = dict.fromkeys([*context.bases, *cached])
    rows = [(name, base_name(name), cached.get(name) or about.get(name, "")) for name in names]
    return render(
        "base_known", rows=rows, used=context.session.base, none_cached=context.local and not cached,
        shared="" if context.local else SHARED,
    )  # fmt: skip


def show_found(base: hub.HubBase) -> Markup:
    """Return what a base model on the hub is, with a button that downloads it."""
    return render("base_found", base=base, size=format_size(base.size))


def show_offline(reason: str) -> Markup:
    """Return what to put where on a machine without a connection."""
    return render("base_offline", reason=reason, advice=hub.offline_advice())
