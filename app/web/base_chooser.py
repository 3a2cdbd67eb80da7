"""Choosing the base model on the page: what toybox is for, known bases, a folder or file, a download from the hub."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.web import base_view
from app.web.base_download import Download, show_download
from app.web.context import AppContext
from app.web.events import HIDDEN, MINE, QUIET, changed, clicked, say, user_errors
from app.web.status_bar import StatusBar, base_name, require_may_configure
from app.web.theme import CLICKS
from app.web.train_photos import PhotoEditor
from app.web.values import Dtype, Line
from hra_diffusion.errors import UserError
from hra_diffusion.files import path_of
from hra_diffusion.hub import OfflineError
from hra_diffusion.models import hub
from hra_diffusion.models.devices import device_for, preferred_dtype
from hra_diffusion.models.loading import DTYPES


@dataclass
class BaseChooser:
    """Components. ``seen``: signature of the download that the visitor has been sent."""

    notice: gr.HTML
    open: gr.Button
    panel: gr.Column
    dtype: gr.Radio
    known: gr.HTML
    elsewhere: gr.Column
    path: gr.Textbox
    use_path: gr.Button
    name: gr.Dropdown
    look_up: gr.Button
    found: gr.HTML
    download: gr.HTML
    close: gr.Button
    seen: gr.State


def build(context: AppContext) -> BaseChooser:
    """Lay the chooser out, closed."""
    with gr.Row(elem_id="base-in-use"):
        notice = gr.HTML(elem_id="base-notice", min_width=200)
        open_ = gr.Button("Choose a base model", size="md", scale=0, min_width=220, elem_id="choose-base")
    with gr.Column(visible=False, elem_id="base-chooser") as panel:
        known = gr.HTML(js_on_load=CLICKS, elem_id="known-bases")
        dtype = gr.Radio(
            list(DTYPES), value=_suggested_dtype(context), label="Precision",
            info="float16 and bfloat16 need half the memory; they are for GPUs.",
        )  # fmt: skip
        with gr.Column(visible=context.local) as elsewhere:
            with gr.Row(elem_classes="entry"):
                path = gr.Textbox(
                    label="From a folder or file", placeholder="/models/stable-diffusion-v1-5",
                    info="A diffusers folder, or a whole checkpoint as .safetensors.", scale=4, min_width=240,
                    elem_id="base-path",
                )  # fmt: skip
                use_path = gr.Button("Use", size="md", scale=0, min_width=100)
            with gr.Row(elem_classes="entry"):
                name = gr.Dropdown(
                    list(hub.SUGGESTIONS), value=hub.SUGGESTIONS[0], allow_custom_value=True, scale=4, min_width=240,
                    label="From the Hugging Face hub", info="owner/name. Its licence and size are shown first.",
                    elem_id="base-id",
                )  # fmt: skip
                look_up = gr.Button("Look up", size="md", scale=0, min_width=100)
            found = gr.HTML(js_on_load=CLICKS, elem_id="found-base")
            download = gr.HTML(js_on_load=CLICKS, elem_id="base-download")
        close = gr.Button("Close", size="sm")
    return BaseChooser(
        notice, open_, panel, dtype, known, elsewhere, path, use_path, name, look_up, found, download, close, gr.State()
    )


def _suggested_dtype(context: AppContext) -> str:
    """Half precision on CUDA, otherwise the precision the page was started with."""
    device = device_for(context.session.device)
    return preferred_dtype(device) if device.startswith("cuda") else context.session.dtype


def use_base(context: AppContext, base: str, dtype: str) -> None:
    """Load another base model in place of the one in use, which is kept if that fails.

    Raises UserError if this page may not choose it, or BaseModelError if it can't be loaded.
    """
    if base not in context.bases and not context.local:
        raise UserError(base_view.SHARED)
    require_may_configure(context)
    session = context.session
    before = session.base, session.device, session.dtype
    session.change(base, session.device, dtype)
    try:
        _ = session.pipe
    except UserError:
        session.change(*before)
        raise
    if base not in context.bases:
        context.bases.append(base)


def checked_path(text: str) -> str:
    """Return the absolute path of a folder or file. Raises UserError if there is none."""
    path = path_of(text.strip().strip("\"'"))
    if not text.strip() or not path.exists():
        raise UserError(f"there is no folder or file {text.strip()!r} on the machine that serves this page")
    return str(path.resolve())


class ChooserEvents:
    """Callbacks of the chooser. All visitors share one download at a time."""

    def __init__(self, context: AppContext):
        self.context = context
        self.current: Download | None = None
        self.found: dict[str, hub.HubBase] = {}

    def open(self) -> tuple[Any, ...]:
        offline = base_view.show_offline("This machine is offline (HF_HUB_OFFLINE is set).") if hub.is_offline() else ""
        return gr.update(visible=True), base_view.show_known(self.context), offline

    def notice(self, request: gr.Request) -> tuple[str, Any]:
        return base_view.show_notice(self.context.for_visitor(request), self.context.draft(request))

    @user_errors
    def use(self, dtype: Dtype, event: gr.EventData, request: gr.Request) -> Any:
        return self._use(clicked(event)["base"], dtype, request)

    @user_errors
    def use_path(self, path: Line, dtype: Dtype, request: gr.Request) -> Any:
        self._require_local()
        return self._use(checked_path(path), dtype, request)

    def _use(self, base: str, dtype: str, request: gr.Request) -> Any:
        use_base(self.context.for_visitor(request), base, dtype)
        say(f"The base model in use is {base_name(base)}.")
        return gr.update(visible=False)

    @user_errors
    def look_up(self, name: Line, dtype: Dtype, request: gr.Request) -> str:
        self._require_local()
        try:
            found = hub.find_base(name.strip(), dtype)
        except OfflineError as error:
            return base_view.show_offline(f"{error}.")
        self.found[str(request.session_hash)] = found
        return base_view.show_found(found)

    @user_errors
    def download(self, request: gr.Request) -> tuple[str, str]:
        self._require_local()
        if self.current and self.current.state == "running":
            raise UserError(f"{self.current.base.name} is being downloaded; wait for it or stop it first")
        if (found := self.found.get(str(request.session_hash))) is None:
            raise UserError("look up a base model first")
        self.current = Download(found)
        self.current.start()
        return "", show_download(self.current)

    @user_errors
    def act_on_download(self, dtype: Dtype, event: gr.EventData, request: gr.Request) -> Any:
        if clicked(event)["do"] == "use":
            return self._use(clicked(event)["base"], dtype, request)
        if self.current and self.context.local:
            self.current.stopped.set()
        return gr.skip()

    def watch(self, seen: str | None) -> tuple[Any, Any]:
        text = show_download(self.current)
        now = changed(text, seen)
        return (text, now) if now else (gr.skip(), gr.skip())

    def _require_local(self) -> None:
        if not self.context.local:
            raise UserError(base_view.SHARED)


def connect(context: AppContext, page: gr.Blocks, chooser: BaseChooser, photos: PhotoEditor, status: StatusBar) -> None:
    """Wire the chooser."""
    events = ChooserEvents(context)
    noticing: dict[str, Any] = {"fn": events.notice, "outputs": [chooser.notice, chooser.open], **QUIET}
    chooser.open.click(events.open, None, [chooser.panel, chooser.known, chooser.found], **QUIET)
    chooser.close.click(lambda: gr.update(visible=False), None, chooser.panel, **QUIET)
    for event, function, inputs in (
        (chooser.known.click, events.use, [chooser.dtype]),
        (chooser.use_path.click, events.use_path, [chooser.path, chooser.dtype]),
        (chooser.download.click, events.act_on_download, [chooser.dtype]),
    ):
        event(function, inputs, chooser.panel, **MINE).success(**noticing)
    chooser.look_up.click(events.look_up, [chooser.name, chooser.dtype], chooser.found, **MINE)
    chooser.found.click(events.download, None, [chooser.found, chooser.download], **HIDDEN)
    status.changes["download"].click(events.watch, chooser.seen, [chooser.download, chooser.seen], **QUIET)
    context.pulse.sources["download"] = lambda: show_download(events.current)
    gr.on([page.load, photos.thumbnails.change, status.base.change], **noticing)
