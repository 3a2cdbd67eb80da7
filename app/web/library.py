"""Library tab: the saved adapters, and what can be done with each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from pydantic import Field

from app.web import cleaning, quotas
from app.web.context import SHARE, AppContext
from app.web.events import DEVICE_QUEUE, HIDDEN, MINE, QUIET, UPLOAD, checked, clicked, user_errors
from app.web.html import button, note, render
from app.web.library_cards import PAGE, show_bin, show_cards
from app.web.library_facts import show_compatibility, show_facts
from app.web.library_files import (
    EXPORTS,
    OWN,
    PLAIN_RANK,
    describe_file,
    export_file,
    export_warning,
    import_file,
    require_idle,
)
from app.web.theme import CLICKS
from app.web.values import Flag, Line, Whole, one_of
from hra_diffusion import trash
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.files import make_folder, remove
from training.runs import lookup

Count = Annotated[Whole, Field(ge=1, le=100_000)]
Format = Annotated[str, one_of(EXPORTS.values())]
SCROLL_TO_FACTS = """() => {
  const facts = document.getElementById('facts');
  if (facts?.getBoundingClientRect().top > innerHeight - 80) facts.scrollIntoView();
}"""
"""On a phone the facts are below the cards, out of view."""


@dataclass
class LibraryTab:
    """Components of the tab.

    ``count`` is the number of cards shown at most; ``uploaded`` holds a file until its import is confirmed.
    """

    search: gr.Textbox
    cards: gr.HTML
    panel: gr.Column
    about: gr.HTML
    own_name: gr.Row
    name: gr.Textbox
    rename: gr.Button
    generate: gr.Button
    format: gr.Dropdown
    export: gr.Button
    download: gr.DownloadButton
    compatibility: gr.HTML
    export_notes: gr.HTML
    share: gr.Checkbox
    delete: gr.Button
    upload: gr.UploadButton
    message: gr.HTML
    bin: gr.HTML
    chosen: gr.State
    count: gr.State
    uploaded: gr.State


def build(context: AppContext) -> LibraryTab:
    """Lay out the tab."""
    parts: dict[str, Any] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            parts["search"] = gr.Textbox(
                placeholder="Search by name, method, base model …", show_label=False, container=False, label="Search",
                elem_id="search",
            )  # fmt: skip
            parts["message"] = gr.HTML(js_on_load=CLICKS)
            parts["cards"] = gr.HTML(js_on_load=CLICKS, elem_id="cards")
            parts["upload"] = gr.UploadButton(
                "Import a .safetensors file of any program: choose it, or drop it anywhere",
                file_types=[".safetensors"],
                size="sm",
                elem_id="import",
            )
            with gr.Accordion(f"Bin (kept for {trash.RETENTION_DAYS} days)", open=False):
                parts["bin"] = gr.HTML(js_on_load=CLICKS)
        with gr.Column(scale=4, min_width=300), gr.Column(visible=False, elem_id="facts") as panel:
            parts |= {"panel": panel, "about": gr.HTML()}
            parts["generate"] = gr.Button("Generate with it", variant="primary")
            with gr.Row(elem_id="rename") as parts["own_name"]:
                parts["name"] = gr.Textbox(label="Name", max_length=64, scale=3, min_width=120)
                parts["rename"] = gr.Button("Rename", scale=1, min_width=80, size="md")
            parts["compatibility"] = gr.HTML()
            parts["format"] = gr.Dropdown(list(EXPORTS.items()), value=OWN, label="Export for other programs")
            with gr.Row():
                parts["export"] = gr.Button("Export", size="md")
                parts["download"] = gr.DownloadButton("Download", size="md", variant="primary", visible=False)
            parts["export_notes"] = gr.HTML(js_on_load=CLICKS)
            parts["share"] = gr.Checkbox(False, label=SHARE, visible=False)
            parts["delete"] = gr.Button("Move to the bin", size="md")
    return LibraryTab(**parts, chosen=gr.State(), count=gr.State(PAGE), uploaded=gr.State())


class Events:
    """Event handlers of the tab."""

    def __init__(self, context: AppContext):
        self.context = context

    @checked
    def refresh(self, search: Line, chosen: str | None, request: gr.Request) -> tuple[str, str]:
        return _overview(self.context.for_visitor(request), search, chosen)

    @user_errors
    def choose(
        self, event: gr.EventData, search: Line, chosen: str | None, count: Count, request: gr.Request
    ) -> tuple[Any, ...]:
        """Show an adapter's facts, or more cards; or move a broken file to the bin."""
        context = self.context.for_visitor(request)
        if clicked(event)["do"] == "more":
            count = min(clicked(event)["at"], 100_000)
            return *[gr.skip()] * 5, show_cards(context, search, chosen, count), *[gr.skip()] * 3, count, gr.skip()
        key = clicked(event)["key"]
        if clicked(event)["do"] == "discard":
            _move_to_trash(context, key)
            cards = show_cards(context, search, chosen, count)
            return *[gr.skip()] * 5, cards, *[gr.skip()] * 4, show_bin(context)
        path = context.adapter_path(key)
        info, owner = read_info(path), context.owner(path)
        own = gr.update(visible=context.person.may_change(owner))
        in_folder = path.parent != context.output.resolve()
        share = gr.update(visible=in_folder and context.may_share(owner), value=owner.shared)
        shown = show_facts(context, key), info.name, show_compatibility(info)
        cards = show_cards(context, search, key, count)
        return key, gr.update(visible=True), *shown, cards, own, own, share, count, gr.skip()

    @user_errors
    def share(self, chosen: str, shared: Flag, request: gr.Request) -> None:
        context = self.context.for_visitor(request)
        context.share(context.own_adapter_path(chosen).parent, shared)

    @user_errors
    def rename(self, chosen: str, name: Line, request: gr.Request) -> tuple[Any, ...]:
        """Rename the adapter, and clear the search, which may not match the new name."""
        context = self.context.for_visitor(request)
        path = context.own_adapter_path(chosen)
        require_idle(context, chosen)
        key = context.key(lookup.rename(path, (name or "").strip()))
        context.rescan()
        return (
            key,
            show_facts(context, key),
            "",
            show_cards(context, "", key),
            note(f"Renamed to {name}.", "plain"),
        )

    @user_errors
    def delete(self, chosen: str, search: Line, request: gr.Request) -> tuple[Any, ...]:
        context = self.context.for_visitor(request)
        name = read_info(context.own_adapter_path(chosen)).name
        message = render("library_binned", name=name, key=_move_to_trash(context, chosen))
        return None, gr.update(visible=False), message, *_overview(context, search)

    @user_errors
    def restore(self, event: gr.EventData, search: Line, request: gr.Request) -> tuple[Any, ...]:
        context, key = self.context.for_visitor(request), clicked(event)["key"]
        context.require_own_binned(key)
        if clicked(event)["do"] == "ask":
            name = key.partition("-")[2]
            return render("library_delete", name=name, key=key), *_overview(context, search)
        path = trash.restore(key, context.output)
        context.rescan()
        return note(f"{path.stem} is restored.", "plain"), *_overview(context, search)

    @user_errors
    def confirm(
        self, event: gr.EventData, search: Line, uploaded: str | None, request: gr.Request
    ) -> tuple[Any, ...]:  # fmt: skip
        if clicked(event)["do"] == "restore":
            return self.restore(event, search, request)
        context = self.context.for_visitor(request)
        if clicked(event)["do"] == "delete":
            context.require_own_binned(clicked(event)["key"])
            cleaning.delete_for_good(context, clicked(event)["key"])
            return note("Deleted for good.", "plain"), *_overview(context, search)
        quotas.require_space(context, request)
        path, _ = import_file(context, Path(str(uploaded)))
        context.rescan()
        return note(f"{read_info(path).name} is imported.", "plain"), *_overview(context, search)

    @user_errors
    def describe(self, file: str | None) -> tuple[Any, ...]:
        """Describe an uploaded file and offer to import it."""
        return (
            None,
            note(describe_file(self.context, Path(str(file))), "plain") + button("Import", "import", main=True),
            file,
        )

    @user_errors
    def export(self, chosen: str, form: Format, request: gr.Request) -> tuple[Any, ...]:
        """Export the adapter, or ask first if some programs load this format incorrectly."""
        if question := export_warning(self.context.for_visitor(request), chosen, form):
            return gr.update(visible=False), question
        return self._export(chosen, form, request)

    @user_errors
    def export_confirmed(self, event: gr.EventData, chosen: str, form: Format, request: gr.Request) -> tuple[Any, ...]:
        """Export the adapter as the visitor answered: in this format all the same, or as a plain LoRA."""
        return self._export(chosen, form, request, PLAIN_RANK if clicked(event)["do"] == "plain" else None)

    def _export(self, chosen: str, form: str, request: gr.Request, lora_rank: int | None = None) -> tuple[Any, ...]:
        context = self.context.for_visitor(request)
        adapter, folder = context.adapter_path(chosen), context.visitor_folder(request) / "exports"
        remove(folder)  # keep one export: merged weights are large
        path, notes = export_file(context, adapter, form, make_folder(folder), lora_rank)
        return gr.update(value=str(path), visible=True), note(notes, "plain")

    def clear_export(self) -> tuple[Any, ...]:
        return gr.update(value=None, visible=False), ""

    @user_errors
    def open_generate(self, chosen: str, request: gr.Request) -> tuple[Any, ...]:
        context = self.context.for_visitor(request)
        chosen = context.key(context.adapter_path(chosen))
        return gr.Tabs(selected="generate"), gr.update(choices=context.adapter_choices(), value=[chosen])


def _move_to_trash(context: AppContext, key: str) -> str:
    """Move a visitor's own adapter file to the bin and return its key there."""
    path = context.own_adapter_path(key)
    require_idle(context, key)
    trashed = trash.move_to_trash(path, context.output)
    context.rescan()
    return trashed


def _overview(context: AppContext, search: str, chosen: str | None = None) -> tuple[str, str]:
    return show_cards(context, search, chosen), show_bin(context)


def connect(
    context: AppContext, page: gr.Blocks, tab: gr.Tab, tabs: gr.Tabs, parts: LibraryTab, generating: Any
) -> None:
    """Connect the events."""
    events, overview = Events(context), [parts.cards, parts.bin]
    gr.on(
        [tab.select, page.load, parts.search.change], events.refresh, [parts.search, parts.chosen], overview,
        trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    parts.cards.click(
        events.choose, [parts.search, parts.chosen, parts.count],
        [parts.chosen, parts.panel, parts.about, parts.name, parts.compatibility, parts.cards, parts.own_name,
         parts.delete, parts.share, parts.count, parts.bin], **HIDDEN,
    ).then(None, None, None, js=SCROLL_TO_FACTS)  # fmt: skip
    parts.share.input(events.share, [parts.chosen, parts.share], None, **HIDDEN)
    parts.rename.click(events.rename, [parts.chosen, parts.name],
                       [parts.chosen, parts.about, parts.search, parts.cards, parts.message], **MINE)  # fmt: skip
    parts.delete.click(events.delete, [parts.chosen, parts.search],
                       [parts.chosen, parts.panel, parts.message, *overview], **MINE)  # fmt: skip
    parts.bin.click(events.restore, parts.search, [parts.message, *overview], **MINE)
    parts.message.click(events.confirm, [parts.search, parts.uploaded], [parts.message, *overview], **MINE)
    parts.upload.upload(events.describe, parts.upload, [parts.upload, parts.message, parts.uploaded], **UPLOAD)
    parts.generate.click(events.open_generate, parts.chosen, [tabs, generating.adapters], **MINE)
    exported = [parts.download, parts.export_notes]
    request = [parts.chosen, parts.format]
    parts.export.click(events.export, request, exported, concurrency_id=DEVICE_QUEUE, concurrency_limit=1, **MINE)
    parts.export_notes.click(
        events.export_confirmed, request, exported, concurrency_id=DEVICE_QUEUE, concurrency_limit=1, **MINE
    )
    gr.on([parts.chosen.change, parts.format.change], events.clear_export, None, exported, **QUIET)
