"""Photo editor of the Train tab: upload, sample subjects, crop and caption of each photo."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from pydantic import Field

from app.web import quotas
from app.web.context import AppContext
from app.web.events import HIDDEN, MINE, QUIET, UPLOAD, checked, clicked, user_errors
from app.web.html import note, render, step_title
from app.web.theme import CLICKS
from app.web.values import Fraction, Line, Number, Text
from hra_diffusion.models.sources import ASSETS
from training.data.advice import coverage
from training.data.caption_files import CAPTION_SUFFIXES
from training.data.drafts import Draft, box_from_zoom, zoom_from_box
from training.data.photo import PhotoWarning
from training.data.photo_files import MAX_PHOTOS

BADGES = {
    "blurred": "blurred",
    "small": "too small",
    "duplicate": "duplicate",
    "different": "different?",
    "dark": "too dark",
    "bright": "too bright",
    "far": "far away?",
    "background": "same place",
    "pose": "same pose",
    "ignored": "left out",
}
OF_ALL = ("background", "pose")
"""Kinds of warnings that concern all photos."""
Zoom = Annotated[Number, Field(ge=1, le=100)]
SAMPLE_SUBJECTS = {"octopus": "toy", "robot": "toy"}
"""Class noun of each sample subject in the assets."""


@dataclass
class PhotoEditor:
    """Components. ``selected`` holds the file name of the photo in the editor. It lives in the browser, so that a crop
    or a caption arrives with the name of its photo, however late."""

    upload: gr.File
    sample: gr.Dropdown
    warnings: gr.HTML
    thumbnails: gr.HTML
    editor: gr.Group
    whole: gr.HTML
    zoom: gr.Slider
    across: gr.Slider
    down: gr.Slider
    caption: gr.Textbox
    remove: gr.Button
    selected: gr.Textbox


def build() -> PhotoEditor:
    """Lay the editor out."""
    gr.HTML(step_title(1, "Photos", "3 to 10 of one subject, from different sides. Phone photos are fine."))
    selected = gr.Textbox("", visible=False)
    upload = gr.File(
        label="Photos", show_label=False, file_count="multiple",
        file_types=["image", ".heic", ".heif", *CAPTION_SUFFIXES], height=118, elem_id="upload",
    )  # fmt: skip
    sample = gr.Dropdown(
        [("or try a sample subject …", ""), *((name, name) for name in SAMPLE_SUBJECTS)], value="", show_label=False,
        container=False, label="Sample subject", elem_id="sample",
    )  # fmt: skip
    thumbnails, warnings = gr.HTML(js_on_load=CLICKS, elem_id="thumbs"), gr.HTML()
    with gr.Group(visible=False, elem_id="editor") as editor:
        whole = gr.HTML(padding=True)
        with gr.Row():
            zoom = gr.Slider(1, 4, 1, step=0.05, label="Zoom", min_width=90)
            across = gr.Slider(0, 1, 0.5, step=0.01, label="Left – right", min_width=90)
            down = gr.Slider(0, 1, 0.5, step=0.01, label="Up – down", min_width=90)
        caption = gr.Textbox(
            label="Caption", info="What this photo shows, with {subject} for the subject. Empty: “a photo of a "
            "{subject}”. The captions used for training are listed below.",
        )  # fmt: skip
        remove = gr.Button("Remove this photo", size="sm")
    return PhotoEditor(
        upload, sample, warnings, thumbnails, editor, whole, zoom, across, down, caption, remove, selected
    )


def show_photos(draft: Draft, resolution: int, selected: str = "") -> tuple[str, str]:
    """Return the thumbnails, cropped as for training, and the warnings about the photos."""
    photos, warnings = draft.photos(resolution)
    if not photos:
        return "", ""
    warnings = [w for w in warnings if w.kind != "small"] + [w for w in warnings if w.kind == "small"]
    cells = [
        {"name": photo.path.name, "image": photo.image, "warnings": warnings_of(warnings, photo.path.name)}
        for photo in photos
    ]
    few = [] if len(photos) >= 3 else ["Three or more photos give better results."]
    thumbnails = render("train_photos", photos=cells, selected=selected, coverage=coverage(photos))
    return thumbnails, note([w.message for w in warnings] + few)


def warnings_of(warnings: Sequence[PhotoWarning], file: str) -> dict[str, str]:
    """Return the badges of a photo and the message of each."""
    own = [warning for warning in warnings if warning.kind in OF_ALL or warning.photo.name == file]
    return {BADGES[warning.kind]: warning.message for warning in own}


def show_crop(draft: Draft, resolution: int, file: str) -> str:
    """Return the whole photo, dimmed outside its crop, with the warnings about it."""
    messages = warnings_of(draft.photos(resolution)[1], file).values()
    upright, crop = draft.upright(file), draft.photo(file, resolution).crop
    left, top, right, bottom = map(round, upright.box(crop))
    dimmed = upright.image.point(lambda value: value * 0.35)
    dimmed.paste(upright.image.crop((left, top, right, bottom)), (left, top))
    return render("train_crop", photo=dimmed, messages=list(messages))


class PhotoEvents:
    """Callbacks of the photo editor."""

    def __init__(self, context: AppContext):
        self.context = context

    def refresh(self, request: gr.Request, selected: str = "") -> tuple[str, str]:
        return show_photos(self.context.draft(request), self.context.resolution, selected)

    @user_errors
    def add(self, files: list[str] | None, request: gr.Request) -> tuple[Any, ...]:
        quotas.require_space(self.context.for_visitor(request), request)
        uploaded = [Path(file) for file in files or []]
        refused = self.context.draft(request).add(uploaded[: 2 * MAX_PHOTOS])
        for file in uploaded:  # the draft has its own copies
            file.unlink(missing_ok=True)
        thumbnails, warnings = self.refresh(request)
        return None, thumbnails, note(refused, "bad") + warnings

    @user_errors
    def use_sample(self, name: Line, request: gr.Request) -> tuple[Any, ...]:
        if name not in SAMPLE_SUBJECTS:
            return *[gr.skip()] * 6, ""
        draft = self.context.draft(request)
        draft.add(sample_photos(name), replace_all=True)
        draft.save_values(noun=SAMPLE_SUBJECTS[name], name=name.capitalize())
        shown = self.refresh(request)
        return "", gr.update(visible=False), *shown, SAMPLE_SUBJECTS[name], name.capitalize(), ""

    @user_errors
    def select(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        draft, resolution = self.context.draft(request), self.context.resolution
        file = clicked(event)["file"]
        caption, photo = draft.get(file).caption, draft.photo(file, resolution)
        sliders = [round(value, 2) for value in zoom_from_box(photo.size, photo.crop)]
        whole = show_crop(draft, resolution, file)
        return file, gr.update(visible=True), whole, caption, *sliders, *self.refresh(request, file)

    @user_errors
    def crop(
        self, selected: Line, zoom: Zoom, across: Fraction, down: Fraction, request: gr.Request
    ) -> tuple[Any, ...]:
        draft, resolution = self.context.draft(request), self.context.resolution
        draft.change(selected, box=box_from_zoom(draft.photo(selected, resolution).size, zoom, across, down))
        return show_crop(draft, resolution, selected), *self.refresh(request, selected)

    @checked
    def set_caption(self, selected: Line, caption: Text, request: gr.Request) -> None:
        self.context.draft(request).change(selected, caption=caption)

    @checked
    def remove(self, selected: Line, request: gr.Request) -> tuple[Any, ...]:
        self.context.draft(request).remove(selected)
        return gr.update(visible=False), *self.refresh(request)


def sample_photos(name: str) -> list[Path]:
    """Return the photos of a sample subject."""
    return sorted((ASSETS / "subjects" / name).glob("*.png"))


def connect(context: AppContext, page: gr.Blocks, photos: PhotoEditor, noun: gr.Textbox, name: gr.Textbox) -> None:
    """Wire the editor. A sample subject fills in ``noun`` and ``name``."""
    events, shown = PhotoEvents(context), [photos.thumbnails, photos.warnings]
    photos.upload.upload(events.add, photos.upload, [photos.upload, *shown], **UPLOAD)
    photos.sample.input(
        events.use_sample, photos.sample,
        [photos.selected, photos.editor, *shown, noun, name, photos.sample], **MINE,
    )  # fmt: skip
    sliders = [photos.zoom, photos.across, photos.down]
    photos.thumbnails.click(
        events.select, None, [photos.selected, photos.editor, photos.whole, photos.caption, *sliders, *shown], **HIDDEN
    )
    for slider in sliders:
        slider.input(  # keyboards never fire `release`; `always_last` drops all but the latest value while busy
            events.crop, [photos.selected, *sliders], [photos.whole, *shown], trigger_mode="always_last", **HIDDEN
        )
    photos.remove.click(events.remove, photos.selected, [photos.editor, *shown], **QUIET)
    page.load(events.refresh, None, shown, **QUIET)
