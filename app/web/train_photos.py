"""Photo editor of the Train tab: upload, sample subjects; crop, caption and mask of each photo."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import gradio as gr
from PIL import Image
from pydantic import Field

from app.web import quotas
from app.web.context import AppContext
from app.web.events import HIDDEN, MINE, QUIET, UPLOAD, checked, clicked, say, user_errors
from app.web.html import note, render, step_title
from app.web.theme import CLICKS
from app.web.values import Fraction, Line, Number, Painting, Text
from hra_diffusion.errors import UserError
from hra_diffusion.models.sources import ASSETS
from training import config as configs
from training import presets
from training.data.advice import coverage
from training.data.buckets import Size
from training.data.caption_files import CAPTION_SUFFIXES
from training.data.cropping import CropMode
from training.data.drafts import Draft, box_from_zoom, mask_size, zoom_from_box
from training.data.photo import Photo, PhotoWarning, Upright
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
PAINT, OPACITY = "#ff7a00", 153
"""Colour of masks in the image editor, and its opacity out of 255."""
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
    masking: gr.Accordion
    painter: gr.ImageEditor
    find_mask: gr.Button
    remove_mask: gr.Button
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
        masking, painter, find_mask, remove_mask = _build_mask()
        remove = gr.Button("Remove this photo", size="sm")
    return PhotoEditor(
        upload, sample, warnings, thumbnails, editor, whole, zoom, across, down, caption, masking, painter, find_mask,
        remove_mask, remove, selected,
    )  # fmt: skip


def _build_mask() -> tuple[gr.Accordion, gr.ImageEditor, gr.Button, gr.Button]:
    paint = PAINT, OPACITY / 255
    with gr.Accordion("Mask", open=False, elem_id="masking") as masking:
        gr.HTML('<p class="soft small">Paint the subject. What is not painted counts less in training.</p>')
        painter = gr.ImageEditor(
            show_label=False, label="Mask", sources=(), transforms=(), layers=False, buttons=[], height=420,
            brush=gr.Brush(colors=[paint], default_color=paint, color_mode="fixed", default_size=30),
            eraser=gr.Eraser(default_size=30), elem_id="painter", format="png",
        )  # fmt: skip
        with gr.Row():
            find_mask = gr.Button("Find the subject", size="sm", elem_id="find-mask")
            remove_mask = gr.Button("No mask", size="sm", elem_id="remove-mask")
    return masking, painter, find_mask, remove_mask


def crop_mode(context: AppContext, draft: Draft) -> CropMode:
    """Return how a run will crop the photos: the crop of the form, or the default of the base model."""
    values = draft.read().values
    given = values.get("crop")
    if values.get("mode") == "YAML":
        with contextlib.suppress(UserError):
            given = configs.parse_yaml(str(values.get("text") or "")).get("crop")
    default = presets.defaults(context.session.base, "hra", "balanced")["crop"]
    return next((mode for mode in get_args(CropMode) if mode == given), default)


def show_photos(photos: Sequence[Photo], warnings: Sequence[PhotoWarning], selected: str = "") -> tuple[str, str]:
    """Return the thumbnails, cropped as for training and dark outside masks, and the warnings about the photos."""
    if not photos:
        return "", ""
    warnings = [w for w in warnings if w.kind != "small"] + [w for w in warnings if w.kind == "small"]
    cells = [
        {"name": photo.path.name, "image": with_mask(photo), "warnings": warnings_of(warnings, photo.path.name)}
        for photo in photos
    ]
    few = [] if len(photos) >= 3 else ["Three or more photos give better results."]
    thumbnails = render("train_photos", photos=cells, selected=selected, coverage=coverage(photos))
    return thumbnails, note([w.message for w in warnings] + few)


def warnings_of(warnings: Sequence[PhotoWarning], file: str) -> dict[str, str]:
    """Return the badges of a photo and the message of each."""
    own = [warning for warning in warnings if warning.kind in OF_ALL or warning.photo.name == file]
    return {BADGES[warning.kind]: warning.message for warning in own}


def with_mask(photo: Photo) -> Image.Image:
    """Return a cropped photo, dimmed outside its mask."""
    return Image.composite(photo.image, dim(photo.image), photo.mask) if photo.mask else photo.image


def dim(image: Image.Image) -> Image.Image:
    """Return a darker image."""
    return image.point(lambda value: value * 0.35)


def painting(draft: Draft, file: str) -> dict[str, Any]:
    """Return the photo and its mask as the image editor shows them."""
    upright, layers = draft.upright(file), []
    photo = upright.image.resize(mask_size(upright.size), reducing_gap=3.0)
    if mask := draft.mask(file):
        layer = Image.new("RGBA", mask.size, PAINT)
        layer.putalpha(mask.point([0] * 128 + [OPACITY] * 128))
        layers = [layer]
    return {"background": photo, "layers": layers, "composite": None}


def painted_mask(painting: Painting, size: Size) -> Image.Image:
    """Return what is painted as a mask of this size. Raises UserError if it is not an image of the editor."""
    mask = Image.new("L", size)
    for layer in painting["layers"]:
        try:
            with Image.open(layer["path"], formats=("PNG", "WEBP")) as image:
                if image.size != size:
                    raise ValueError("of another photo")
                mask = image.convert("RGBA").getchannel("A").point([0] * 16 + [255] * 240)
        except Exception:  # Pillow's decoders raise any exception on a damaged file
            raise UserError("what was painted can't be read; open the photo again") from None
    return mask


def show_crop(upright: Upright, photo: Photo, warnings: Sequence[PhotoWarning]) -> str:
    """Return the whole photo, dimmed outside its crop, with the warnings about it."""
    messages = warnings_of(warnings, photo.path.name).values()
    left, top, right, bottom = map(round, upright.box(photo.crop))
    dimmed = dim(upright.image)
    dimmed.paste(upright.image.crop((left, top, right, bottom)), (left, top))
    return render("train_crop", photo=dimmed, messages=list(messages))


class PhotoEvents:
    """Callbacks of the photo editor."""

    def __init__(self, context: AppContext):
        self.context = context

    def refresh(self, request: gr.Request, selected: str = "") -> tuple[str, str]:
        draft = self.context.draft(request)
        return show_photos(*draft.photos(self.context.resolution, crop_mode(self.context, draft)), selected)

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
        file, mode = clicked(event)["file"], crop_mode(self.context, draft)
        caption, photo = draft.get(file).caption, draft.photo(file, resolution, mode)
        box = photo.frame if mode == "bucket" else photo.crop
        sliders = [round(value, 2) for value in zoom_from_box(photo.size, box)]
        photos, warnings = draft.photos(resolution, mode)
        whole = show_crop(draft.upright(file), photo, warnings)
        opened = file, gr.update(visible=True), whole, caption, *sliders
        mask = gr.update(open=photo.mask is not None), painting(draft, file)
        return *opened, *mask, *show_photos(photos, warnings, file)

    @user_errors
    def crop(
        self, selected: Line, zoom: Zoom, across: Fraction, down: Fraction, request: gr.Request
    ) -> tuple[Any, ...]:
        draft, resolution = self.context.draft(request), self.context.resolution
        mode, upright = crop_mode(self.context, draft), draft.upright(selected)
        draft.change(selected, box=box_from_zoom(upright.size, zoom, across, down, square=mode != "bucket"))
        photos, warnings = draft.photos(resolution, mode)
        whole = show_crop(upright, draft.photo(selected, resolution, mode), warnings)
        return whole, *show_photos(photos, warnings, selected)

    @checked
    def set_crop(self, crop: Line, request: gr.Request) -> tuple[str, str]:
        """Store the crop of the form, which the thumbnails show."""
        self.context.draft(request).save_values(crop=crop)
        return self.refresh(request)

    @user_errors
    def paint(self, selected: Line, painted: Painting, request: gr.Request) -> tuple[Any, ...]:
        draft = self.context.draft(request)
        mask = painted_mask(painted, size := mask_size(draft.upright(selected).size))
        before = draft.mask(selected) or Image.new("L", size)
        if mask == before.point([0] * 128 + [255] * 128):  # the editor also sends what it has just been given
            return gr.skip(), gr.skip()
        draft.set_mask(selected, mask)
        return self.refresh(request, selected)

    @user_errors
    def find_mask(self, selected: Line, request: gr.Request) -> tuple[Any, ...]:
        draft = self.context.draft(request)
        if not draft.find_mask(selected):
            say("No subject was found in this photo: draw its crop closer around it, or paint the mask.", warning=True)
        return painting(draft, selected), *self.refresh(request, selected)

    @user_errors
    def remove_mask(self, selected: Line, request: gr.Request) -> tuple[Any, ...]:
        draft = self.context.draft(request)
        draft.get(selected)
        draft.set_mask(selected, None)
        return painting(draft, selected), *self.refresh(request, selected)

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


def connect(
    context: AppContext, page: gr.Blocks, photos: PhotoEditor, noun: gr.Textbox, name: gr.Textbox, crop: gr.Dropdown
) -> None:
    """Wire the editor. A sample subject fills in ``noun`` and ``name``. ``crop`` is the field of the form."""
    events, shown = PhotoEvents(context), [photos.thumbnails, photos.warnings]
    photos.upload.upload(events.add, photos.upload, [photos.upload, *shown], **UPLOAD)
    photos.sample.input(
        events.use_sample, photos.sample,
        [photos.selected, photos.editor, *shown, noun, name, photos.sample], **MINE,
    )  # fmt: skip
    sliders = [photos.zoom, photos.across, photos.down]
    opened = [photos.selected, photos.editor, photos.whole, photos.caption, *sliders, photos.masking, photos.painter]
    photos.thumbnails.click(events.select, None, [*opened, *shown], **HIDDEN)
    for slider in sliders:
        slider.input(  # keyboards never fire `release`; `always_last` drops all but the latest value while busy
            events.crop, [photos.selected, *sliders], [photos.whole, *shown], trigger_mode="always_last", **HIDDEN
        )
    crop.input(events.set_crop, crop, shown, **QUIET)
    photos.painter.input(events.paint, [photos.selected, photos.painter], shown, trigger_mode="always_last", **HIDDEN)
    photos.find_mask.click(events.find_mask, photos.selected, [photos.painter, *shown], **MINE)
    photos.remove_mask.click(events.remove_mask, photos.selected, [photos.painter, *shown], **HIDDEN)
    photos.remove.click(events.remove, photos.selected, [photos.editor, *shown], **QUIET)
    page.load(events.refresh, None, shown, **QUIET)
