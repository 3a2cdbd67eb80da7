"""The Teach tab: photos, what it is, how to learn it; and beside it the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from app.web import form, run_view
from app.web.context import HIDDEN, MINE, QUIET, AppContext, changed, clicked, user_errors
from app.web.html import badge, note, picture, title
from app.web.status_bar import base_name
from app.web.theme import CLICKS
from hra_diffusion.adapters import registry
from hra_diffusion.errors import UserError
from hra_diffusion.pipeline import ASSETS, TOYBOX
from training import budget
from training import config as configs
from training.config import ConfigError, TrainConfig
from training.data.captions import final_captions
from training.data.drafts import Draft, free_album, zoom_of, zoomed
from training.data.photos import CAPTION_SUFFIXES, MAX_PHOTOS, load_photo
from training.presets import PRESETS
from training.runs import calibration
from training.runs.events import caption_lines

BADGES = {
    "blurred": "blurred",
    "small": "too small",
    "duplicate": "twice",
    "different": "different?",
    "ignored": "left out",
}
SUBJECTS = {"octopus": "toy", "robot": "toy"}
"""Sample subjects in the assets, and what they are."""


BASICS = ("noun", "name", "trigger", "preset", "method", "several", "mode", "text", "add_trigger")
"""The fields that are not made from the configuration, as a draft keeps them."""


@dataclass
class Teach:
    """The tab's components. ``picked``: the file of the photo in the editor. It is kept in the browser: a crop or a
    caption comes with the name of the photo it is of, however late."""

    upload: gr.File
    sample: gr.Dropdown
    remarks: gr.HTML
    thumbs: gr.HTML
    editor: gr.Group
    whole: gr.HTML
    zoom: gr.Slider
    across: gr.Slider
    down: gr.Slider
    caption: gr.Textbox
    remove: gr.Button
    picked: gr.Textbox
    noun: gr.Textbox
    name: gr.Textbox
    trigger: gr.Textbox
    spoken: gr.HTML
    add_trigger: gr.Checkbox
    captions: gr.HTML
    preset: gr.Radio
    method: gr.Dropdown
    several: gr.CheckboxGroup
    prediction: gr.HTML
    mode: gr.Radio
    fields: gr.Column
    entries: list[form.Entry]
    text: gr.Code
    start: gr.Button
    run: run_view.RunView
    seen: gr.State

    @property
    def inputs(self) -> list[Any]:
        """All that decides a run, but the photos."""
        fields = [entry.component for entry in self.entries]
        return [self.noun, self.name, self.trigger, self.preset, self.method, self.several, self.mode, self.text,
                self.add_trigger, *fields]  # fmt: skip

    @property
    def names(self) -> list[str]:
        """What a draft calls ``inputs``."""
        return [*BASICS, *(entry.name for entry in self.entries)]


def build(house: AppContext) -> Teach:
    """Lay the tab out."""
    parts: dict[str, Any] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            parts |= _photos()
            parts |= _names()
            parts |= _how()
            parts["start"] = gr.Button("Teach", variant="primary", size="lg", elem_id="teach-button")
        with gr.Column(scale=6, min_width=320):
            parts["run"] = run_view.build()
    return Teach(**parts, seen=gr.State())


def _photos() -> dict[str, Any]:
    gr.HTML(
        title(1, "Photos")
        + '<p class="soft small">3 to 10 of one subject, from different sides. Phone photos are fine.</p>'
    )
    picked = gr.Textbox("", visible=False)
    upload = gr.File(
        label="Photos", show_label=False, file_count="multiple",
        file_types=["image", ".heic", ".heif", *CAPTION_SUFFIXES], height=118, elem_id="upload",
    )  # fmt: skip
    sample = gr.Dropdown(
        [("or try a sample subject …", ""), *((name, name) for name in SUBJECTS)], value="", show_label=False,
        container=False, label="Sample subject", elem_id="sample",
    )  # fmt: skip
    thumbs, remarks = gr.HTML(js_on_load=CLICKS, elem_id="thumbs"), gr.HTML()
    with gr.Group(visible=False, elem_id="editor") as editor:
        whole = gr.HTML(padding=True)
        with gr.Row():
            zoom = gr.Slider(1, 4, 1, step=0.05, label="Closer", min_width=90)
            across = gr.Slider(0, 1, 0.5, step=0.01, label="Left – right", min_width=90)
            down = gr.Slider(0, 1, 0.5, step=0.01, label="Up – down", min_width=90)
        caption = gr.Textbox(
            label="Caption", info="What is in this photo, with {subject} for it. Empty: “a photo of a {subject}”. "
            "The captions that will be used are listed below.",
        )  # fmt: skip
        remove = gr.Button("Remove this photo", size="sm")
    return {"picked": picked, "upload": upload, "sample": sample, "remarks": remarks, "thumbs": thumbs,
            "editor": editor, "whole": whole, "zoom": zoom, "across": across, "down": down, "caption": caption,
            "remove": remove}  # fmt: skip


def _names() -> dict[str, Any]:
    gr.HTML(title(2, "What is it?"))
    with gr.Row():
        noun = gr.Textbox(label="It is a …", placeholder="dog", max_length=60, min_width=90, elem_id="noun")
        name = gr.Textbox(label="Name", placeholder="Rex", max_length=64, min_width=90, elem_id="name")
        trigger = gr.Textbox(label="Trigger word", value="sks", max_length=40, min_width=90)
    spoken = gr.HTML()
    add_trigger = gr.Checkbox(
        True, label="Add the trigger word to captions that lack it", elem_id="add-trigger", visible=False,
        info="“a dog sitting” becomes “sks dog, a dog sitting”. Without the word, a caption teaches nothing about it.",
    )  # fmt: skip
    return {"noun": noun, "name": name, "trigger": trigger, "spoken": spoken, "add_trigger": add_trigger,
            "captions": gr.HTML(elem_id="captions")}  # fmt: skip


def _how() -> dict[str, Any]:
    gr.HTML(title(3, "How?"))
    preset = gr.Radio([(name.capitalize(), name) for name in PRESETS], value="balanced", show_label=False,
                      container=False, label="How long", elem_id="preset")  # fmt: skip
    methods = [(registry.get_method(name).title, name) for name in registry.method_names()]
    method = gr.Dropdown(
        methods, value="hra", label="Method", info=registry.get_method("hra").summary, elem_id="method"
    )
    with gr.Accordion("Teach several methods and compare", open=False):
        several = gr.CheckboxGroup(
            methods, label="Methods", info="One run each, on the same photos, at ranks that give all about as many "
            "trainable parameters as the method above. They wait for each other in the queue.", elem_id="several",
        )  # fmt: skip
    prediction = gr.HTML(elem_id="prediction")
    with gr.Accordion("Advanced settings", open=False, elem_id="advanced"):
        mode = gr.Radio(["Form", "YAML"], value="Form", show_label=False, container=False, label="Settings as")
        with gr.Column() as fields:
            entries = form.build()
        text = gr.Code(language="yaml", visible=False, label="These settings are used as they stand here", lines=12)
    return {"preset": preset, "method": method, "several": several, "prediction": prediction, "mode": mode,
            "fields": fields, "entries": entries, "text": text}  # fmt: skip


def given_values(house: AppContext, parts: Teach, values: Sequence[Any]) -> dict[str, Any]:
    """The form (or the YAML in its place) as values of a configuration; photos are not in it."""
    noun, name, trigger, preset, method, _, mode, text, add_trigger, *fields = values
    basics = {"class_noun": noun, "name": (name or "").strip(), "trigger": trigger, "preset": preset, "method": method}
    basics["add_trigger"] = add_trigger
    studio = house.studio
    basics |= {"base": base_path(studio.base), "dtype": studio.dtype, "device": studio.device}
    basics |= {"prediction_type": studio.prediction_type, "rescale_zero_snr": studio.rescale_zero_snr}
    if mode == "YAML":
        found = yaml_values(text)
        fixed = ("photos", "boxes", "base", "prediction_type", "rescale_zero_snr")
        return basics | {key: value for key, value in found.items() if key not in fixed}
    return basics | form.collect(parts.entries, fields, method)


def yaml_values(text: str) -> dict[str, Any]:
    """Settings typed as YAML. Raises ConfigError for text that is none."""
    try:
        found = yaml.safe_load(text or "")
    except yaml.YAMLError as error:
        raise ConfigError(f"the YAML can't be read: {error}") from None
    if found is not None and not isinstance(found, dict):
        raise ConfigError("the YAML holds no settings; expected lines like 'steps: 300'")
    return configs.with_current_names(found or {})


def base_path(base: str) -> str:
    """The base as runs name it: absolute where it is a folder or file, for they run elsewhere."""
    return str(Path(base).resolve()) if base != TOYBOX and Path(base).exists() else base


def trial_config(house: AppContext, parts: Teach, values: Sequence[Any], base: str | None = None) -> TrainConfig:
    """The configuration as far as it is filled in, on the base in use or another: what is missing does not change what
    it costs."""
    given = given_values(house, parts, values) | ({"base": base_path(base)} if base else {})
    given = {key: value for key, value in given.items() if value not in ("", None)}
    return configs.parse({"name": "preview", "class_noun": "thing", **given, "photos": ["."], "boxes": {}})


def unfilled(parts: Teach, values: Sequence[Any]) -> list[Any]:
    """The form's values with none of the advanced settings filled in."""
    return [*values[:6], "Form", "", values[8], *([""] * len(parts.entries))]


def own_values(house: AppContext, parts: Teach, values: Sequence[Any], config: TrainConfig) -> dict[str, Any]:
    """What a configuration has of its own: all that its preset and method do not say by themselves."""
    bare = trial_config(house, parts, unfilled(parts, [*values[:3], config.preset, config.method, *values[5:]]))
    own = {name: value for name, value in config if value != getattr(bare, name)}
    return own | {"options": {k: v for k, v in config.options.items() if v != bare.options.get(k)}}


def plan(house: AppContext, parts: Teach, values: Sequence[Any]) -> list[TrainConfig]:
    """The runs to come, photos aside: one, or one a method at matched budgets.

    Other methods than the first take over what was set by hand, and neither its defaults nor its options.
    """
    first = trial_config(house, parts, values)
    if not (several := values[5]):
        return [first]
    given = given_values(house, parts, values)
    # YAML has every setting, the form those that were filled in
    chosen = {*form.ELSEWHERE, *own_values(house, parts, values, first)} if values[6] == "YAML" else given
    shapes = budget.layer_shapes(house.studio.pipe, first)
    size = budget.count(first.method, first.options, shapes)
    configs_ = []
    for other in several:
        kept = given if other == first.method else {k: given[k] for k in given if k in chosen}
        own = {k: v for k, v in kept.items() if v not in ("", None) and (k != "options" or other == first.method)}
        config = configs.parse({"name": "preview", "class_noun": "thing", **own, "photos": ["."], "method": other})
        rank = budget.matched_rank(other, config.options, shapes, size)
        configs_.append(config.model_copy(update={"options": config.options | {"rank": rank}}))
    return configs_


def teach(house: AppContext, parts: Teach, draft: Draft, base: str, values: Sequence[Any]) -> list[str]:
    """Put the planned runs into the queue; returns their names. Raises UserError: what is missing or wrong.

    ``base``: the one the visitor was shown; all share one, and another may just have changed it.
    """
    noun, name = values[0], (values[1] or "").strip()
    if base != house.studio.base:
        raise UserError(
            f"the base model in use is {base_name(house.studio.base)}, not {base_name(base)}: it was changed just "
            "now, or changes when the drawing at hand is over; look at it above, then press Teach again"
        )
    if not draft.read().photos:
        raise UserError("No photos yet. Drop 3 to 10 photos of the subject first.")
    if not noun or not name:
        raise UserError("Say what it is (“dog”) and give it a name (“Rex”).")
    runs = plan(house, parts, values)
    names = [name] if len(runs) == 1 and not values[5] else [f"{name}-{config.method}" for config in runs]
    for new in names:
        if (house.output / configs.checked_name(new)).exists():
            raise UserError(f"there is something called {new!r} already; take another name")
    album = free_album(house.output, name).resolve()
    boxes = draft.settle(album)
    for new, config in zip(names, runs, strict=True):
        values_ = config.model_dump(mode="json") | {"name": new, "class_noun": noun, "photos": [str(album)]}
        house.queue.add(configs.parse(values_ | {"boxes": {str(path): box for path, box in boxes.items()}}))
    house.queue.start()
    return names


def show_photos(draft: Draft, side: int, picked: str = "") -> tuple[str, str]:
    """The thumbnails, cut as they will be, and what to look at."""
    photos, warnings = draft.photos(side)
    if not photos:
        return "", ""
    warnings = [w for w in warnings if w.kind != "small"] + [w for w in warnings if w.kind == "small"]
    kinds = [[w.kind for w in warnings if w.photo.name == photo.path.name] for photo in photos]
    badges = [[BADGES[kind] for kind in dict.fromkeys(own)] for own in kinds]
    cells = [
        f'<button type="button" class="thumb{" on" if photo.path.name == picked else ""}" data-do="pick" '
        f'data-file="{escape(photo.path.name)}" '
        f'aria-label="{", ".join([f"Photo {i + 1}", *badges[i]])}: crop and caption">'
        f"{picture(photo.image, f'photo {i + 1}', zoom=False)}"
        f"{''.join(badge(text, 'warn') for text in badges[i])}</button>"
        for i, photo in enumerate(photos)
    ]
    few = [] if len(photos) >= 3 else ["Three photos or more give a better likeness."]
    hint = '<p class="soft small">Click a photo to change its crop or caption.</p>'
    return f'<div class="thumbs">{"".join(cells)}</div>{hint}', note([w.message for w in warnings] + few)


def show_captions(house: AppContext, parts: Teach, draft: Draft, values: Sequence[Any]) -> tuple[str, Any]:
    """The caption that each photo will be trained with, and the checkbox where one lacks the trigger.

    Nothing before there are photos and a class noun.
    """
    captions = {Path(photo.file): photo.caption or None for photo in draft.read().photos}
    if not captions or not values[0]:
        return "", gr.update(visible=False)
    try:
        config = trial_config(house, parts, values)
    except UserError:
        return "", gr.skip()  # the forecast says what is wrong
    lines = caption_lines(final_captions(config, captions))
    lacking = final_captions(config.model_copy(update={"add_trigger": True}), captions).added
    return f'<div class="soft small">{"<br>".join(map(escape, lines))}</div>', gr.update(visible=bool(lacking))


def show_whole(draft: Draft, side: int, file: str) -> str:
    """The whole photo with the part that will be used lit."""
    photo = draft.photo(file, side)
    image, (left, top, right, bottom) = load_photo(photo.path), photo.crop
    dim = image.point(lambda value: value * 0.35)
    dim.paste(image.crop((left, top, right, bottom)), (left, top))
    return f'<div style="max-width:360px;margin:auto">{picture(dim, "the part that is used is lit", zoom=False)}</div>'


def predict(house: AppContext, parts: Teach, photos: int, values: Sequence[Any], measure: bool) -> tuple[Any, str]:
    """Minutes of each preset beside its name, and time and memory of what is chosen; measures what is not known."""
    try:
        chosen = plan(house, parts, values) if not values[5] or house.studio.loaded else []
    except UserError as error:
        return gr.skip(), note(str(error), "bad")
    missing = [config for config in chosen if calibration.known(house.output, config) is None]
    if missing or not chosen:
        return gr.skip(), _not_measured(house, missing, measure)
    known = [(config, calibration.known(house.output, config) or calibration.Calibration()) for config in chosen]
    if broken := next((one.error for _, one in known if one.error), ""):
        return gr.skip(), note(f"this can't run here: {broken}", "bad")
    count = max(photos, 1)
    seconds = sum(one.seconds(config, count) for config, one in known)
    memory = max(one.memory for _, one in known) / 2**30
    start = f"{len(known)} runs, about" if len(known) > 1 else "About"
    text = f"{start} <b>{in_minutes(seconds)}</b> and <b>{memory:.1f} GB</b> of memory on this machine, measured."
    return gr.update(choices=_preset_labels(house, parts, count, values)), f"<p>{text}</p>"


def _not_measured(house: AppContext, missing: Sequence[TrainConfig], measure: bool) -> str:
    if house.queue.busy():
        text = "Time and memory can be measured when the run in progress is over."
    elif missing and measure:
        calibration.start(house.output, missing[0])
        text = "Measuring how long this takes on this machine: a few real steps, some seconds …"
    else:
        text = "Time and memory on this machine are measured once there are photos."
    return f'<p class="soft">{text}</p>'


def _preset_labels(house: AppContext, parts: Teach, photos: int, values: Sequence[Any]) -> list[tuple[str, str]]:
    labels = []
    for preset in PRESETS:
        config = trial_config(house, parts, [*values[:3], preset, *values[4:]])
        one = calibration.known(house.output, config)
        more = f" · {in_minutes(one.seconds(config, photos))}" if one and not one.error else ""
        labels.append((preset.capitalize() + more, preset))
    return labels


def in_minutes(seconds: float) -> str:
    """A predicted time as coarsely as it is known."""
    if seconds < 50:
        return f"{max(5, round(seconds / 5) * 5)} s"
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"


def spoken(trigger: str, noun: str) -> str:
    """How prompts call the subject."""
    subject = f"{trigger.strip() or 'sks'} {noun.strip() or 'dog'}"
    return f'<p class="soft small">In prompts: <b>{escape(subject)}</b></p>'


def connect(
    house: AppContext, page: gr.Blocks, tabs: gr.Tabs, parts: Teach, strip: Any, creating: Any, comparing: Any
) -> None:
    """Wire the tab."""
    _connect_photos(house, page, parts)
    _connect_form(house, page, parts, strip)
    _connect_captions(house, parts)
    run_view.connect(house, page, tabs, parts.run, strip, creating, comparing)

    @user_errors
    def begin(request: gr.Request, base: str, *values: Any) -> str:
        draft = house.draft(request)
        names = teach(house, parts, draft, base, values)
        draft.keep(watching=names[0])
        gr.Info(f"{', '.join(names)}: in the queue. It goes on when you close this page.")
        return names[0]

    parts.start.click(begin, [strip.base, *parts.inputs], parts.run.shown, **MINE).then(
        lambda: None, None, parts.run.seen, **QUIET
    ).then(None, None, None, js="() => document.getElementById('run')?.scrollIntoView({block: 'nearest'})")


class PhotoEvents:
    """What is done with photos."""

    def __init__(self, house: AppContext):
        self.house = house

    def refresh(self, request: gr.Request, picked: str = "") -> tuple[str, str]:
        return show_photos(self.house.draft(request), self.house.side, picked)

    @user_errors
    def add(self, files: list[str] | None, request: gr.Request) -> tuple[Any, ...]:
        uploaded = [Path(file) for file in files or []]
        refused = self.house.draft(request).add(uploaded[: 2 * MAX_PHOTOS])
        for file in uploaded:  # the draft has its own copies
            file.unlink(missing_ok=True)
        thumbs, remarks = self.refresh(request)
        return None, thumbs, note(refused, "bad") + remarks

    @user_errors
    def take_sample(self, name: str, request: gr.Request) -> tuple[Any, ...]:
        if name not in SUBJECTS:
            return *[gr.skip()] * 6, ""
        draft = self.house.draft(request)
        draft.add(sorted((ASSETS / "subjects" / name).glob("*.png")), anew=True)
        draft.keep(noun=SUBJECTS[name], name=name.capitalize())
        return "", gr.update(visible=False), *self.refresh(request), SUBJECTS[name], name.capitalize(), ""

    @user_errors
    def pick(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        draft, side = self.house.draft(request), self.house.side
        file = clicked(event)["file"]
        caption, cut = draft.find(file).caption, draft.photo(file, side)
        sliders = [round(value, 2) for value in zoom_of(cut.size, cut.crop)]
        shown = show_whole(draft, side, file)
        return file, gr.update(visible=True), shown, caption, *sliders, *self.refresh(request, file)

    @user_errors
    def cut(self, picked: str, zoom: float, across: float, down: float, request: gr.Request) -> tuple[Any, ...]:
        draft, side = self.house.draft(request), self.house.side
        draft.change(picked, box=zoomed(draft.photo(picked, side).size, zoom, across, down))
        return show_whole(draft, side, picked), *self.refresh(request, picked)

    def describe(self, picked: str, caption: str, request: gr.Request) -> None:
        self.house.draft(request).change(picked, caption=caption)

    def remove(self, picked: str, request: gr.Request) -> tuple[Any, ...]:
        self.house.draft(request).remove(picked)
        return gr.update(visible=False), *self.refresh(request)


def _connect_photos(house: AppContext, page: gr.Blocks, parts: Teach) -> None:
    events, shown = PhotoEvents(house), [parts.thumbs, parts.remarks]
    parts.upload.upload(events.add, parts.upload, [parts.upload, *shown], **MINE)
    parts.sample.input(
        events.take_sample, parts.sample,
        [parts.picked, parts.editor, *shown, parts.noun, parts.name, parts.sample], **MINE,
    )  # fmt: skip
    parts.thumbs.click(
        events.pick, None,
        [parts.picked, parts.editor, parts.whole, parts.caption, parts.zoom, parts.across, parts.down, *shown],
        **HIDDEN,
    )  # fmt: skip
    for slider in (parts.zoom, parts.across, parts.down):
        slider.input(  # not on release, which the keyboard never does; while one is at work only the last one waits
            events.cut, [parts.picked, parts.zoom, parts.across, parts.down], [parts.whole, *shown],
            trigger_mode="always_last", **HIDDEN,
        )  # fmt: skip
    parts.remove.click(events.remove, parts.picked, [parts.editor, *shown], **QUIET)
    page.load(events.refresh, None, shown, **QUIET)


class FormEvents:
    """What is done with the form."""

    def __init__(self, house: AppContext, parts: Teach):
        self.house, self.parts = house, parts

    def keep(self, request: gr.Request, *values: Any) -> None:
        self.house.draft(request).keep(**dict(zip(self.parts.names, values, strict=True)))

    def bring_back(self, request: gr.Request) -> list[Any]:
        kept = self.house.draft(request).read().values
        return [kept.get(name, gr.skip()) for name in self.parts.names]

    def unfold(self, mode: str) -> list[Any]:
        return [gr.update(visible=mode == "Form"), gr.update(visible=mode == "YAML")]

    def stand_ins(self, base: str, *values: Any) -> list[Any]:
        """What empty fields stand for on the base that is shown: the one in use follows when it is free."""
        try:
            bare = trial_config(self.house, self.parts, unfilled(self.parts, values), base)
        except UserError:
            return [gr.skip()] * (1 + len(self.parts.entries))
        return [gr.update(info=registry.get_method(bare.method).summary), *form.refreshed(self.parts.entries, bare)]

    def forecast(self, seen: str | None, request: gr.Request, *values: Any) -> tuple[Any, ...]:
        photos = len(self.house.draft(request).read().photos)
        labels, text = predict(self.house, self.parts, photos, values, measure=photos > 0)
        now = changed([labels, text], seen)
        return (labels, text, now) if now else (gr.skip(), gr.skip(), gr.skip())

    @user_errors
    def switch(self, mode: str, *values: Any) -> list[Any]:
        if mode == "YAML":
            config = trial_config(self.house, self.parts, [*values[:6], "Form", *values[7:]])
            text = yaml.safe_dump(editable(config), sort_keys=False, allow_unicode=True)
            return [
                gr.update(visible=False),
                gr.update(visible=True, value=text),
                *([gr.skip()] * (2 + len(self.parts.entries))),
            ]
        config = trial_config(self.house, self.parts, [*values[:6], "YAML", *values[7:]])  # wrong ones are refused here
        own = own_values(self.house, self.parts, values, config)
        fields = form.filled(self.parts.entries, own)
        return [gr.update(visible=True), gr.update(visible=False), config.preset, config.method, *fields]


def _connect_form(house: AppContext, page: gr.Blocks, parts: Teach, strip: Any) -> None:
    fields = [entry.component for entry in parts.entries]
    events = FormEvents(house, parts)
    forecasting: dict[str, Any] = {
        "inputs": [parts.seen, *parts.inputs],
        "outputs": [parts.preset, parts.prediction, parts.seen],
    }
    gr.on(_edited(parts), events.keep, parts.inputs, None, **QUIET)
    gr.on([parts.preset.input, parts.method.input, parts.several.input], events.forecast, **forecasting, **QUIET)
    gr.on(
        [parts.preset.input, parts.method.input, strip.base.change],
        events.stand_ins,
        [strip.base, *parts.inputs],
        [parts.method, *fields],
        **QUIET,
    )
    gr.on([parts.noun.change, parts.trigger.change], spoken, [parts.trigger, parts.noun], parts.spoken, **QUIET)
    switched = [parts.fields, parts.text, parts.preset, parts.method, *fields]
    parts.mode.input(events.switch, [parts.mode, *parts.inputs], switched, **HIDDEN).then(
        events.stand_ins, [strip.base, *parts.inputs], [parts.method, *fields], **QUIET
    ).then(events.keep, parts.inputs, None, **QUIET)
    strip.timer.tick(events.forecast, **forecasting, **QUIET)
    page.load(events.bring_back, None, parts.inputs, **QUIET).then(
        events.unfold, parts.mode, [parts.fields, parts.text], **QUIET
    ).then(events.stand_ins, [strip.base, *parts.inputs], [parts.method, *fields], **QUIET).then(
        events.forecast, **forecasting, **QUIET
    )


def _connect_captions(house: AppContext, parts: Teach) -> None:
    def show(request: gr.Request, *values: Any) -> tuple[str, Any]:
        return show_captions(house, parts, house.draft(request), values)

    shown: dict[str, Any] = {
        "fn": show,
        "inputs": parts.inputs,
        "outputs": [parts.captions, parts.add_trigger],
        **QUIET,
    }
    described = [parts.picked, parts.caption]
    parts.caption.blur(PhotoEvents(house).describe, described, None, **QUIET).then(**shown)
    gr.on([*_edited(parts), parts.noun.change, parts.trigger.change, parts.thumbs.change], **shown)


def _edited(parts: Teach) -> list[Any]:
    """The events of the form's fields being changed by hand."""
    return [part.blur if isinstance(part, gr.Textbox | gr.Code) else part.input for part in parts.inputs]


def editable(config: TrainConfig) -> dict[str, Any]:
    """A configuration as YAML shows it: all but what has its own place on the page."""
    hidden: set[str] = {*form.ELSEWHERE} - {"method", "options", "preset"}
    return config.model_dump(mode="json", exclude=hidden)
