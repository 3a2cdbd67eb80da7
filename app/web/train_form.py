"""Form of the Train tab: what the subject is, how long to train, which method, advanced settings."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app.web import form
from app.web.context import AppContext
from app.web.events import HIDDEN, MINE, QUIET, changed, checked, user_errors
from app.web.html import render, step_title
from app.web.status_bar import StatusBar
from app.web.train_config import (
    DECISIVE_FIELDS,
    FormValues,
    changed_settings,
    defaults_beside,
    preview_config,
    to_yaml,
)
from app.web.train_forecast import forecast, measurements
from app.web.train_photos import PhotoEditor, PhotoEvents
from app.web.values import Line, Mode
from hra_diffusion.adapters import registry
from hra_diffusion.errors import UserError
from training.data.captions import final_captions
from training.data.drafts import Draft, DraftPhoto
from training.presets import PRESETS
from training.runs.event_text import caption_lines


@dataclass
class TrainForm:
    """Components. ``seen``: signature of the forecast that the visitor has been sent."""

    noun: gr.Textbox
    name: gr.Textbox
    trigger: gr.Textbox
    in_prompts: gr.HTML
    add_trigger: gr.Checkbox
    captions: gr.HTML
    describe: gr.Button
    preset: gr.Radio
    method: gr.Dropdown
    several: gr.CheckboxGroup
    forecast: gr.HTML
    mode: gr.Radio
    fields: gr.Column
    entries: list[form.Entry]
    text: gr.Code
    seen: gr.State

    @property
    def inputs(self) -> list[Any]:
        """All components that decide a run except the photos, in the order of FormValues."""
        basics = [getattr(self, name) for name in FormValues._fields[:-1]]
        return [*basics, *self.advanced]

    @property
    def advanced(self) -> list[Any]:
        """Components of the advanced settings."""
        return [entry.component for entry in self.entries]

    @property
    def names(self) -> list[str]:
        """Names under which a draft stores ``inputs``."""
        return [*FormValues._fields[:-1], *(entry.name for entry in self.entries)]

    @property
    def edited(self) -> list[Any]:
        """Events fired when a visitor edits one of the inputs."""
        return [part.blur if isinstance(part, gr.Textbox | gr.Code) else part.input for part in self.inputs]


def build() -> TrainForm:
    """Lay the form out."""
    return TrainForm(**_subject(), **_training(), seen=gr.State())


def _subject() -> dict[str, Any]:
    gr.HTML(step_title(2, "What is it?"))
    with gr.Row():
        noun = gr.Textbox(label="It is a …", placeholder="dog", max_length=60, min_width=90, elem_id="noun")
        name = gr.Textbox(label="Name", placeholder="Rex", max_length=64, min_width=90, elem_id="name")
        trigger = gr.Textbox(label="Trigger word", value="sks", max_length=40, min_width=90)
    in_prompts = gr.HTML()
    add_trigger = gr.Checkbox(
        True, label="Add the trigger word to captions that lack it", elem_id="add-trigger", visible=False,
        info="“a dog sitting” becomes “sks dog, a dog sitting”. A caption without the word teaches nothing about it.",
    )  # fmt: skip
    captions = gr.HTML(elem_id="captions")
    describe = gr.Button("Write captions for photos without one", size="sm", elem_id="describe", visible=False)
    return {"noun": noun, "name": name, "trigger": trigger, "in_prompts": in_prompts, "add_trigger": add_trigger,
            "captions": captions, "describe": describe}  # fmt: skip


def _training() -> dict[str, Any]:
    gr.HTML(step_title(3, "How?"))
    preset = gr.Radio([(name.capitalize(), name) for name in PRESETS], value="balanced", show_label=False,
                      container=False, label="How long", elem_id="preset")  # fmt: skip
    methods = [(registry.get_method(name).title, name) for name in registry.method_names()]
    method = gr.Dropdown(
        methods, value="hra", label="Method", info=registry.get_method("hra").summary, elem_id="method"
    )
    with gr.Accordion("Train several methods and compare", open=False):
        several = gr.CheckboxGroup(
            methods, label="Methods", info="One run per method on the same photos, at ranks that give each about as "
            "many trainable parameters as the method above. The queue trains them one after another.",
            elem_id="several",
        )  # fmt: skip
    forecast_ = gr.HTML(elem_id="forecast", render=False)  # below the button that trains
    with gr.Accordion("Advanced settings", open=False, elem_id="advanced"):
        mode = gr.Radio(["Form", "YAML"], value="Form", show_label=False, container=False, label="Settings as")
        with gr.Column() as fields:
            entries = form.build()
        text = gr.Code(language="yaml", visible=False, label="These settings are used exactly as written", lines=12)
    return {"preset": preset, "method": method, "several": several, "forecast": forecast_, "mode": mode,
            "fields": fields, "entries": entries, "text": text}  # fmt: skip


def show_captions(
    context: AppContext, entries: Sequence[form.Entry], photos: Sequence[DraftPhoto], values: FormValues
) -> tuple[str, Any]:
    """Return the caption each photo is trained with, and an update of the trigger checkbox.

    The checkbox is visible if a caption lacks the trigger. Empty until there are photos and a class noun.
    """
    captions = {Path(photo.file): photo.caption or None for photo in photos}
    if not captions or not values.noun:
        return "", gr.update(visible=False)
    try:
        config = preview_config(context, entries, values)
    except UserError:
        return "", gr.skip()  # the forecast shows the error
    lines = caption_lines(final_captions(config, captions))
    lacking = final_captions(config.model_copy(update={"add_trigger": True}), captions).added
    return render("train_captions", lines=lines), gr.update(visible=bool(lacking))


def describe_photos(draft: Draft, resolution: int, noun: str) -> None:
    """Write captions for the photos of a draft without one, with a captioner on this machine: none is downloaded.

    Raises UserError without photos or without the captioner.
    """
    without = [photo.file for photo in draft.read().photos if not photo.caption]
    if not without:
        raise UserError("every photo has a caption already" if draft.read().photos else "No photos yet.")
    from training.data import captioner  # takes seconds to import, as the next one
    from training.memory.peak import in_subprocess

    if not captioner.is_local(captioner.DEFAULT):
        raise UserError(
            f"the captioner {captioner.DEFAULT} is not on this machine. Download it once (1 GB) with: hra-diffusion "
            "caption PHOTOS; or click each photo and write its caption"
        )
    photos = [photo for photo in draft.photos(resolution)[0] if photo.path.name in without]
    images = [photo.image for photo in photos]
    captions = in_subprocess(captioner.write_captions, images, noun, captioner.DEFAULT, "cpu", True)  # frees its memory
    for photo, caption in zip(photos, captions, strict=True):
        draft.change(photo.path.name, caption=caption)


@checked
def show_subject(trigger: Line, noun: Line) -> str:
    """Return how prompts refer to the subject."""
    subject = f"{trigger.strip() or 'sks'} {noun.strip() or 'dog'}"
    return render("train_subject", subject=subject)


class FormEvents:
    """Callbacks of the form."""

    def __init__(self, context: AppContext, form_: TrainForm):
        self.context, self.form = context, form_

    @checked
    def store(self, request: gr.Request, *values: Any) -> None:
        FormValues.of(values)
        self.context.draft(request).save_values(**dict(zip(self.form.names, values, strict=True)))

    def restore(self, request: gr.Request) -> list[Any]:
        stored = self.context.draft(request).read().values
        return [stored.get(name, gr.skip()) for name in self.form.names]

    @checked
    def show_mode(self, mode: Mode) -> list[Any]:
        return [gr.update(visible=mode == "Form"), gr.update(visible=mode == "YAML")]

    @checked
    def show_defaults(self, base: Line, request: gr.Request, *values: Any) -> list[Any]:
        """Show the defaults of empty fields on the base model shown; the session may still be switching to it."""
        context, entries, given = self.context.for_visitor(request), self.form.entries, FormValues.of(values)
        for chosen in (given.decisive(entries), given.without_advanced()):  # without any if one is not valid
            with contextlib.suppress(UserError):
                config = preview_config(context, entries, chosen, base)
                defaults = defaults_beside(context, entries, given, config)
                about = gr.update(info=registry.get_method(given.method).summary)
                return [about, *form.placeholder_updates(entries, defaults)]
        return [gr.skip()] * (1 + len(entries))

    @checked
    def show_forecast(self, seen: str | None, request: gr.Request, *values: Any) -> tuple[Any, ...]:
        photos = len(self.context.draft(request).read().photos)
        entries, given = self.form.entries, FormValues.of(values)
        presets, text = forecast(self.context.for_visitor(request), entries, photos, given, measure=photos > 0)
        now = changed([presets, text], seen)
        return (presets, text, now) if now else (gr.skip(), gr.skip(), gr.skip())

    @checked
    def show_captions(self, request: gr.Request, *values: Any) -> tuple[str, Any, Any]:
        photos, context = self.context.draft(request).read().photos, self.context.for_visitor(request)
        describable = gr.update(visible=any(not photo.caption for photo in photos))
        return *show_captions(context, self.form.entries, photos, FormValues.of(values)), describable

    @user_errors
    def describe(self, selected: Line, noun: Line, request: gr.Request) -> str:
        """Write captions for the photos without one, and return that of the selected photo."""
        draft = self.context.draft(request)
        describe_photos(draft, self.context.resolution, noun.strip())
        return next((photo.caption for photo in draft.read().photos if photo.file == selected), "")

    @user_errors
    def switch_mode(self, request: gr.Request, mode: Mode, *values: Any) -> list[Any]:
        context, given = self.context.for_visitor(request), FormValues.of(values)
        if mode == "YAML":
            text = to_yaml(preview_config(context, self.form.entries, given._replace(mode="Form")))
            unchanged = [gr.skip()] * (2 + len(self.form.entries))
            return [gr.update(visible=False), gr.update(visible=True, value=text), *unchanged]
        given = given._replace(mode="YAML")
        config = preview_config(context, self.form.entries, given)  # invalid YAML is refused here
        fields = form.value_updates(self.form.entries, changed_settings(context, self.form.entries, given, config))
        return [gr.update(visible=True), gr.update(visible=False), config.preset, config.method, *fields]


def connect(context: AppContext, page: gr.Blocks, form_: TrainForm, photos: PhotoEditor, status: StatusBar) -> None:
    """Wire the form."""
    events, inputs = FormEvents(context, form_), form_.inputs
    defaults: dict[str, Any] = {
        "fn": events.show_defaults,
        "inputs": [status.base, *inputs],
        "outputs": [form_.method, *form_.advanced],
        **QUIET,
    }
    forecasting: dict[str, Any] = {
        "fn": events.show_forecast,
        "inputs": [form_.seen, *inputs],
        "outputs": [form_.preset, form_.forecast, form_.seen],
        **QUIET,
    }
    gr.on(form_.edited, events.store, inputs, None, **QUIET)
    edited = dict(zip(form_.names, form_.edited, strict=True))
    deciding = [edited[name] for name in ("preset", "method", *DECISIVE_FIELDS)]
    gr.on([status.base.change, *deciding], **defaults)
    subject = [form_.trigger, form_.noun]
    gr.on([form_.noun.change, form_.trigger.change], show_subject, subject, form_.in_prompts, **QUIET)
    switched = [form_.fields, form_.text, form_.preset, form_.method, *form_.advanced]
    form_.mode.input(events.switch_mode, [form_.mode, *inputs], switched, **HIDDEN).then(**defaults).then(
        events.store, inputs, None, **QUIET
    )
    status.changes["forecast"].click(**forecasting)
    gr.on([*form_.edited, photos.thumbnails.change], **forecasting)
    context.pulse.sources["forecast"] = lambda: measurements(context)
    page.load(events.restore, None, inputs, **QUIET).then(
        events.show_mode, form_.mode, [form_.fields, form_.text], **QUIET
    ).then(**defaults).then(**forecasting)


def connect_captions(context: AppContext, form_: TrainForm, photos: PhotoEditor) -> None:
    """Keep the list of captions up to date with the form and the photos."""
    shown: dict[str, Any] = {
        "fn": FormEvents(context, form_).show_captions,
        "inputs": form_.inputs,
        "outputs": [form_.captions, form_.add_trigger, form_.describe],
        **QUIET,
    }
    captioned = [photos.selected, photos.caption]
    described = [photos.selected, form_.noun]
    form_.describe.click(FormEvents(context, form_).describe, described, photos.caption, **MINE).then(**shown)
    photos.caption.blur(PhotoEvents(context).set_caption, captioned, None, **QUIET).then(**shown)
    gr.on([*form_.edited, form_.noun.change, form_.trigger.change, photos.thumbnails.change], **shown)
