"""The Library tab: every adapter, what it says of itself, and what can be done with it."""

import functools
import shutil
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.inference_session import import_libraries
from app.web.context import DEVICE_QUEUE, HIDDEN, MINE, QUIET, AppContext, clicked, user_errors
from app.web.html import badge, button, empty, facts, note, picture
from app.web.theme import CLICKS
from hra_diffusion import library, pipeline, trash
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.adapter_file import AdapterInfo, check, is_ours, read_info
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder, remove
from hra_diffusion.library import SavedAdapter, count_parameters
from training.runs import run_folder

OWN = "own"
EXPORTS = {
    "As it is, for this program": OWN,
    "LoRA file, kohya’s layout": "kohya",
    "LoRA file, diffusers’ layout": "diffusers",
    "Folder for PEFT (.zip)": "peft",
    "The whole base with it (large)": "merged",
}
"""What an adapter can be downloaded as, and the format's name."""
FORMS = {OWN: "as it is", "kohya": "kohya’s", "diffusers": "diffusers’", "peft": "PEFT’s", "merged": "whole base"}
"""The same in a word."""

PLAIN_RANK = 32
"""The rank of the plain LoRA that is offered in place of a DoRA."""

UNCOVER = """() => {
  const facts = document.getElementById('facts');
  if (facts?.getBoundingClientRect().top > innerHeight - 80) facts.scrollIntoView();
}"""
"""On a phone the facts are below the cards, out of sight."""


@dataclass
class Library:
    """The tab's components. ``given``: an uploaded file that may be kept."""

    search: gr.Textbox
    cards: gr.HTML
    panel: gr.Column
    about: gr.HTML
    name: gr.Textbox
    rename: gr.Button
    create: gr.Button
    format: gr.Dropdown
    make: gr.Button
    ready: gr.DownloadButton
    places: gr.HTML
    loads: gr.HTML
    delete: gr.Button
    upload: gr.UploadButton
    said: gr.HTML
    bin: gr.HTML
    chosen: gr.State
    given: gr.State


def build(house: AppContext) -> Library:
    """Lay the tab out."""
    parts: dict[str, Any] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            parts["search"] = gr.Textbox(
                placeholder="search by name, method, base …", show_label=False, container=False, label="Search",
                elem_id="search",
            )  # fmt: skip
            parts["said"] = gr.HTML(js_on_load=CLICKS)
            parts["cards"] = gr.HTML(js_on_load=CLICKS, elem_id="cards")
            parts["upload"] = gr.UploadButton(
                "Import: choose a .safetensors of any program, or drop it anywhere",
                file_types=[".safetensors"],
                size="sm",
                elem_id="import",
            )
            with gr.Accordion(f"Bin (kept for {trash.RETENTION_DAYS} days)", open=False):
                parts["bin"] = gr.HTML(js_on_load=CLICKS)
        with gr.Column(scale=4, min_width=300), gr.Column(visible=False, elem_id="facts") as panel:
            parts |= {"panel": panel, "about": gr.HTML()}
            parts["create"] = gr.Button("Create with it", variant="primary")
            with gr.Row(elem_id="rename"):
                parts["name"] = gr.Textbox(label="Name", max_length=64, scale=3, min_width=120)
                parts["rename"] = gr.Button("Rename", scale=1, min_width=80, size="md")
            parts["places"] = gr.HTML()
            parts["format"] = gr.Dropdown(list(EXPORTS.items()), value=OWN, label="Take it elsewhere")
            with gr.Row():
                parts["make"] = gr.Button("Make the file", size="md")
                parts["ready"] = gr.DownloadButton("Download", size="md", variant="primary", visible=False)
            parts["loads"] = gr.HTML(js_on_load=CLICKS)
            parts["delete"] = gr.Button("Move to the bin", size="md")
    return Library(**parts, chosen=gr.State(), given=gr.State())


def show_cards(house: AppContext, search: str = "", chosen: str | None = None) -> str:
    """The adapters as cards; those that match the search."""
    adapters = house.adapters()
    if not adapters:
        return empty("No adapters yet", "What you teach is kept here. You can also import a file below.")
    words = search.casefold().split()
    found = [saved for saved in adapters if all(word in _words(saved.info) for word in words)]
    found.sort(key=lambda saved: -saved.path.stat().st_mtime)
    cards = "".join(_card(house, saved, chosen) for saved in found)
    return f'<div class="cards">{cards}</div>' if found else note("Nothing here matches.", "plain")


def _words(info: AdapterInfo) -> str:
    return f"{info.name} {info.method} {info.base} {info.subject}".casefold()


def _card(house: AppContext, saved: SavedAdapter, chosen: str | None) -> str:
    info, key, samples = saved.info, house.key(saved.path), run_folder.samples_of(saved.path)
    image = picture(samples[0], f"drawn with {info.name}", zoom=False) if samples else '<div class="blank"></div>'
    wrong = badge("another base", "warn") if misfit(house, saved.path) else ""
    size = f"{saved.path.stat().st_size / 1e6:.1f} MB"
    date = time.strftime("%d %b %Y", time.localtime(saved.path.stat().st_mtime))
    return (
        f'<button type="button" class="card{" on" if key == chosen else ""}" data-do="open" data-key="{escape(key)}">'
        f'{image}<span class="name">{escape(info.name)}</span><span>{badge(_title(info.method))} {wrong}</span>'
        f'<span class="soft small">{escape(info.base)} · {size}<br>{date}</span></button>'
    )


def _title(method: str) -> str:
    return registry.get_method(method).title if method in registry.method_names() else method


def misfit(house: AppContext, path: Path) -> str:
    """Why an adapter does not belong to the base in use; "" while that is not loaded yet, or is being drawn with."""
    studio = house.studio
    if not studio.loaded or not studio.lock.acquire(blocking=False):
        return ""
    try:
        return _misfit(house, studio.base, path, path.stat().st_mtime_ns)
    finally:
        studio.lock.release()


@functools.lru_cache(maxsize=500)
def _misfit(house: AppContext, base: str, path: Path, changed: int) -> str:
    return pipeline.incompatibility(read_info(path), house.studio.pipe)


def show_facts(house: AppContext, key: str) -> str:
    """All that is known of one adapter."""
    path = house.file(key)
    info = read_info(path)
    layers = sum(len(probes) for probes in info.fingerprint.values())
    training = info.training
    seconds = sum(training.get("seconds", {}).values())
    origin = f"{training['photos']} photos, {training['step']} steps, {seconds:.0f} s" if "step" in training else ""
    origin += f", {training['memory'] / 2**30:.1f} GiB" if "memory" in training else ""
    options = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in info.options.items() if value is not None)
    known = facts([
        ("in prompts", info.subject), ("method", _title(info.method)), ("base", info.base), ("taught with", origin),
        ("size", f"{path.stat().st_size / 1e6:.2f} MB"),
    ])  # fmt: skip
    more = facts([
        ("options", options), ("layers", f"{layers} ({info.targets})"),
        ("parameters", f"{count_parameters(path):,}".replace(",", " ")), ("preset", training.get("preset", "")),
        ("learning rate", training.get("learning_rate", "")), ("seed", training.get("seed", "")), ("file", key),
    ])  # fmt: skip
    samples = "".join(f"<figure>{picture(p, info.name)}</figure>" for p in run_folder.samples_of(path)[:3])
    row = f'<div class="trio" data-group>{samples}</div>' if samples else ""
    head = f'<div class="head"><h2>{escape(info.name)}</h2></div>{note(misfit(house, path))}'
    return f"{head}{row}{known}<details><summary>More</summary>{more}</details>"


def show_places(info: AdapterInfo) -> str:
    """Where it can be loaded: each form it can leave in, and how well each program takes that."""
    if info.method not in registry.method_names():
        return ""
    import_libraries()
    from hra_diffusion.interop import compatibility

    forms: dict[str, dict[str, list[str]]] = {}
    for row in compatibility.expected_exports(info.method):
        if row.form != "folder":  # the page writes single files
            forms.setdefault(FORMS[row.format], {}).setdefault(row.loads, []).append(row.program)
    places = {
        form: "; ".join(f"{how}: {', '.join(own)}" for how, own in found.items()) for form, found in forms.items()
    }
    return f"<h3>Where it can be loaded</h3>{facts([(FORMS[OWN], 'exactly: hra-diffusion'), *places.items()])}"


def show_bin(house: AppContext) -> str:
    """What was deleted, and can still be brought back."""
    keys = trash.keys(house.output)
    if not keys:
        return '<p class="soft">Empty.</p>'
    rows = [
        f'<div><span class="grow"><strong>{escape(key.split("-", 1)[1])}</strong></span>'
        f"{button('Bring back', 'restore', key=key)}</div>"
        for key in keys
    ]
    return f'<div class="queue">{"".join(rows)}</div>'


class Events:
    """What the tab's buttons do."""

    def __init__(self, house: AppContext):
        self.house = house

    def refresh(self, search: str, chosen: str | None) -> tuple[str, str]:
        return show_cards(self.house, search or "", chosen), show_bin(self.house)

    @user_errors
    def choose(self, event: gr.EventData, search: str) -> tuple[Any, ...]:
        key = clicked(event)["key"]
        info = read_info(self.house.file(key))
        shown = show_facts(self.house, key), info.name, show_places(info)
        return key, gr.update(visible=True), *shown, show_cards(self.house, search or "", key)

    @user_errors
    def rename(self, chosen: str, name: str, search: str) -> tuple[Any, ...]:
        require_idle(self.house, chosen)
        key = self.house.key(run_folder.rename(self.house.file(chosen), (name or "").strip()))
        return (
            key,
            show_facts(self.house, key),
            show_cards(self.house, search or "", key),
            note(f"It is called {name} now.", "plain"),
        )

    @user_errors
    def delete(self, chosen: str, search: str) -> tuple[Any, ...]:
        require_idle(self.house, chosen)
        name, key = (
            read_info(self.house.file(chosen)).name,
            trash.move_to_trash(self.house.file(chosen), self.house.output),
        )
        undo = button("Undo", "restore", key=key)
        said = f'<div class="note plain" role="status">{escape(name)} is in the bin. {undo}</div>'
        return None, gr.update(visible=False), said, *self.refresh(search, None)

    @user_errors
    def restore(self, event: gr.EventData, search: str) -> tuple[Any, ...]:
        path = trash.restore(clicked(event)["key"], self.house.output)
        return note(f"{path.stem} is back.", "plain"), *self.refresh(search, None)

    @user_errors
    def answer(self, event: gr.EventData, search: str, given: str | None) -> tuple[Any, ...]:
        if clicked(event)["do"] == "restore":
            return self.restore(event, search)
        path, _ = take_in(self.house, Path(str(given)))
        return note(f"{read_info(path).name} is kept now.", "plain"), *self.refresh(search, None)

    @user_errors
    def look_into(self, file: str | None) -> tuple[Any, ...]:
        """What an uploaded file is, before it is kept."""
        return None, note(understood(self.house, Path(str(file))), "plain") + button("Keep it", "keep", main=True), file

    @user_errors
    def make(self, chosen: str, form: str, request: gr.Request) -> tuple[Any, ...]:
        """Make the file, or ask first if some programs load this form wrongly."""
        if question := doubts(self.house, chosen, form):
            return gr.update(visible=False), question
        return self._make(chosen, form, request)

    @user_errors
    def make_after_all(self, event: gr.EventData, chosen: str, form: str, request: gr.Request) -> tuple[Any, ...]:
        """Make the file as the person answered: as it is, or as a plain LoRA."""
        return self._make(chosen, form, request, PLAIN_RANK if clicked(event)["do"] == "plain" else None)

    def _make(self, chosen: str, form: str, request: gr.Request, lora_rank: int | None = None) -> tuple[Any, ...]:
        folder = self.house.own(request) / "exports"
        remove(folder)  # one at a time: merged weights are large
        path, told = export(self.house, self.house.file(chosen), form, make_folder(folder), lora_rank)
        return gr.update(value=str(path), visible=True), note(told, "plain")

    def forget(self) -> tuple[Any, ...]:
        return gr.update(value=None, visible=False), ""

    @user_errors
    def use(self, chosen: str) -> tuple[Any, ...]:
        return gr.Tabs(selected="create"), gr.update(
            choices=self.house.adapter_choices(), value=[self.house.key(self.house.file(chosen))]
        )


def connect(house: AppContext, page: gr.Blocks, tab: gr.Tab, tabs: gr.Tabs, parts: Library, creating: Any) -> None:
    """Wire the tab."""
    events, overview = Events(house), [parts.cards, parts.bin]
    gr.on(
        [tab.select, page.load, parts.search.change], events.refresh, [parts.search, parts.chosen], overview,
        trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    parts.cards.click(
        events.choose, parts.search,
        [parts.chosen, parts.panel, parts.about, parts.name, parts.places, parts.cards], **HIDDEN,
    ).then(None, None, None, js=UNCOVER)  # fmt: skip
    parts.rename.click(events.rename, [parts.chosen, parts.name, parts.search],
                       [parts.chosen, parts.about, parts.cards, parts.said], **MINE)  # fmt: skip
    parts.delete.click(events.delete, [parts.chosen, parts.search],
                       [parts.chosen, parts.panel, parts.said, *overview], **MINE)  # fmt: skip
    parts.bin.click(events.restore, parts.search, [parts.said, *overview], **MINE)
    parts.said.click(events.answer, [parts.search, parts.given], [parts.said, *overview], **MINE)
    parts.upload.upload(events.look_into, parts.upload, [parts.upload, parts.said, parts.given], **MINE)
    parts.create.click(events.use, parts.chosen, [tabs, creating.adapters], **MINE)
    made = [parts.ready, parts.loads]
    asked = [parts.chosen, parts.format]
    parts.make.click(events.make, asked, made, concurrency_id=DEVICE_QUEUE, **MINE)
    parts.loads.click(events.make_after_all, asked, made, concurrency_id=DEVICE_QUEUE, **MINE)
    gr.on([parts.chosen.change, parts.format.change], events.forget, None, made, **QUIET)


def understood(house: AppContext, file: Path) -> list[str]:
    """What an adapter file is, ours or a stranger's for the base in use; nothing is kept. Raises UserError."""
    if is_ours(file):
        info = check(file)
        subject = f" of “{info.subject}”" if info.subject else ""
        return [f"{info.name}: {_title(info.method)}{subject}, for {info.base}.", *filter(None, [misfit(house, file)])]
    import_libraries()
    from hra_diffusion import interop

    with house.studio.lock:
        return interop.parse_adapter(house.studio.pipe, file)[-1].lines


def take_in(house: AppContext, file: Path) -> tuple[Path, list[str]]:
    """Keep an adapter file, ours or a stranger's for the base in use; what was understood of a stranger's.

    Raises UserError for a file that is neither.
    """
    if is_ours(file):
        return library.add_file(file, house.output), []
    import_libraries()
    from hra_diffusion import interop

    name = library.unused_name(interop.name_for(file), house.output)
    with house.studio.lock:
        path, report = interop.import_adapter(house.studio.pipe, file, house.output / name, name)
    return path, report.lines


def doubts(house: AppContext, key: str, form: str) -> str:
    """The question before an export in a form that some programs load wrongly; "" if none does."""
    method = read_info(house.file(key)).method
    if method not in registry.method_names():
        return ""
    import_libraries()
    from hra_diffusion.interop import compatibility

    wrong = compatibility.wrong_in(method, form)
    if not wrong:
        return ""
    lines = ["Some programs load this file wrongly. “The whole base with it” is right in all of them.", *wrong]
    plain = button(f"Make a plain LoRA of rank {PLAIN_RANK} instead", "plain", main=True)
    return note(lines) + plain + button("Make it all the same", "make")


def export(
    house: AppContext, path: Path, form: str, folder: Path, lora_rank: int | None = None
) -> tuple[Path, list[str]]:
    """Write an adapter as one file in a folder; what to know before it is used elsewhere. Raises UserError."""
    if form == OWN:
        return Path(shutil.copy2(path, folder)), []
    import_libraries()
    from hra_diffusion import interop
    from hra_diffusion.interop import compatibility

    with house.studio.lock:
        (info,) = house.studio.load_adapters([path])
        place = folder / (f"{path.stem}-{form}" + ("" if form == "peft" else ".safetensors"))
        sample = next(iter(run_folder.samples_of(path)), None)
        done = interop.export(house.studio.pipe, info.name, form, place, lora_rank=lora_rank, info=info, sample=sample)
        notes = compatibility.notes(house.studio.pipe, info.name, done)
    packed = Path(shutil.make_archive(str(place), "zip", place)) if place.is_dir() else place
    return packed, [
        f"Written: {done.shape}. What loads it:",
        *compatibility.lines(done),
        *notes,
        *compatibility.advice(info),
    ]


def require_idle(house: AppContext, key: str) -> None:
    """Raises UserError while the run of this adapter is at work: its folder must stay where it is."""
    busy = house.queue.busy()
    if busy and house.file(key).is_relative_to(busy.folder.resolve()):
        raise UserError("it is being trained; stop the run first")
