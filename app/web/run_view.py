"""The run beside the training form: following it, and what can be done with it."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from pydantic import Field

from app.web import cleaning, quotas
from app.web.context import SHARE, AppContext
from app.web.events import HIDDEN, MINE, QUIET, changed, clicked, say, user_errors
from app.web.html import empty_state, note
from app.web.run_list import act_on_run
from app.web.run_report import show_head, show_log, show_loss, show_samples
from app.web.theme import CLICKS
from app.web.values import Flag, Whole
from hra_diffusion.errors import UserError
from hra_diffusion.names import unused_name
from training import config as configs
from training.memory import advice
from training.runs import owners, progress
from training.runs.queue import OVER, Job


@dataclass
class RunView:
    """Components of the view.

    ``shown`` holds the run's name, or "" for the run in progress or the newest one; ``displayed`` the name of the run
    that the visitor sees, to which the buttons apply; ``seen`` digests of what was sent.
    """

    head: gr.HTML
    plot: gr.HTML
    samples: gr.HTML
    log: gr.HTML
    log_accordion: gr.Accordion
    stop: gr.Button
    sample_now: gr.Button
    resume: gr.Button
    again: gr.Button
    generate: gr.Button
    compare: gr.Button
    more: gr.Row
    more_steps: gr.Number
    go_on: gr.Button
    share: gr.Checkbox
    shown: gr.State
    displayed: gr.State
    seen: gr.State

    @property
    def outputs(self) -> list[Any]:
        """Components that ``refresh`` updates."""
        return [self.head, self.plot, self.samples, self.log, self.log_accordion, *self.buttons, self.share,
                self.seen, self.displayed]  # fmt: skip

    @property
    def buttons(self) -> list[Any]:
        """In the order of ``_offered``."""
        return [self.stop, self.sample_now, self.resume, self.again, self.generate, self.compare, self.more]


def build() -> RunView:
    """Lay out the view."""
    with gr.Column(elem_id="run"):
        head, plot = gr.HTML(elem_id="run-head"), gr.HTML()
        with gr.Row():
            buttons = {
                "generate": gr.Button("Generate with it", variant="primary", visible=False, size="md", min_width=120),
                "compare": gr.Button("Compare", visible=False, size="md", min_width=100),
                "stop": gr.Button("Stop and save", visible=False, size="md", min_width=120),
                "sample_now": gr.Button("Generate samples now", visible=False, size="md", min_width=120),
                "resume": gr.Button("Resume", variant="primary", visible=False, size="md", min_width=100),
                "again": gr.Button(
                    "Train again with this change", variant="primary", visible=False, size="md", min_width=120
                ),
            }
        with gr.Row(visible=False, elem_id="more-steps") as more:
            more_steps = gr.Number(100, precision=0, minimum=1, label="More steps", min_width=110,
                                   info="The learning rate follows the schedule of the longer run.")  # fmt: skip
            go_on = gr.Button("Train on", size="md", min_width=100)
        share = gr.Checkbox(False, label=SHARE, visible=False)
        samples = gr.HTML(js_on_load=CLICKS, elem_id="rounds")
        with gr.Accordion("Log", open=False, visible=False) as log_accordion:
            log = gr.HTML()
    return RunView(head, plot, samples, log, log_accordion, **buttons, more=more, more_steps=more_steps, go_on=go_on,
                   share=share, shown=gr.State(""),
                   displayed=gr.State(""), seen=gr.State())  # fmt: skip


def find(context: AppContext, name: str) -> Job | None:
    """Return the run of that name, or else the run in progress or the newest one."""
    with contextlib.suppress(UserError):  # no name, or a run that was deleted
        return context.job(name)
    return next(iter(context.jobs(1)), None)


def refresh(context: AppContext, name: str, seen: tuple[str, str] | None) -> list[Any]:
    """Return updates of everything about the run that changed since ``seen``."""
    job = find(context, name)
    if job is None:
        text = "Add a few photos, say what they show, and press Train. You can follow the training here."
        return _only(empty_state("No runs yet", text, "demo"), seen)
    try:
        state, config = progress.read(job.run), job.run.config
    except UserError as error:  # a configuration edited by hand, or of another version
        return _only(note(f"{job.run.name} can't be shown: {error}", "bad"), seen)
    if not (own := context.person.may_change(job.owner)):  # these texts name photos and folders
        state, job = dataclasses.replace(state, notices=[], log=[]), dataclasses.replace(job, reason="ask its owner")
    head = show_head(job, state, config)
    samples = [job.run.name, sorted(state.samples), state.checkpoints, sorted(state.scores)]
    new_state = changed([head, state.step, len(state.losses), state.log[-1:]], seen[0] if seen else None)
    new_samples = changed(samples, seen[1] if seen else None)
    if not new_state and not new_samples:
        return [gr.skip()] * 15
    now = (new_state or seen[0], new_samples or seen[1])  # type: ignore[index]
    return [
        head,
        show_loss(state, job.steps),
        show_samples(job, state, config) if new_samples else gr.skip(),
        show_log(job, state) if own else "",
        gr.update(visible=own),
        *_offered(job, own),
        gr.update(visible=context.may_share(job.owner), value=job.owner.shared),
        now,
        job.run.name,
    ]


def _only(text: str, seen: tuple[str, str] | None) -> list[Any]:
    """Return updates that show this text alone, unless it is shown already."""
    now = (text, "")
    if now == seen:
        return [gr.skip()] * 15
    hidden = gr.update(visible=False)
    return [text, "", "", "", hidden, *_offered(None, False), hidden, now, ""]


def _offered(job: Job | None, own: bool) -> list[Any]:
    """Return which buttons apply to the run. ``own``: whether the visitor may change it."""
    status = job.status if job else ""
    has_advice = bool(job and status == "failed" and advice.advise(job.reason, job.run.config).changes)
    done = status == "finished"
    changes = [status == "running", status == "running", status in OVER and not has_advice, has_advice]
    goes_on = own and done and bool(job and job.run.states())
    return [gr.update(visible=v) for v in [*(own and change for change in changes), done, done, goes_on]]


def train_again(context: AppContext, name: str) -> str:
    """Queue the run once more with the changes that the advice suggests; returns its new name."""
    job = context.own_job(name)
    config, new = job.run.config, unused_name(name, context.output)
    values = config.model_dump(mode="json") | advice.advise(job.reason, config).changes | {"name": new}
    with context.queue.index.writing():
        quotas.require_turns(context)
        context.queue.add(configs.parse(values), owners.read(job.run.folder))
    context.queue.start()
    return new


class Events:
    """Event handlers of the view."""

    def __init__(self, context: AppContext):
        self.context = context

    def watch(self, name: str, seen: Any, request: gr.Request) -> list[Any]:
        return refresh(self.context.for_visitor(request), name, seen)

    def restore(self, request: gr.Request) -> str:
        cleaning.note_visit(self.context, request)
        return self.context.draft(request).read().values.get("watching", "")

    def acting(self, action: str) -> Any:
        @user_errors
        def act(shown: str, displayed: str, request: gr.Request) -> list[Any]:
            context = self.context.for_visitor(request)
            act_on_run(context, action, displayed)
            return refresh(context, shown, None)

        return act

    @user_errors
    def go_on(
        self, shown: str, displayed: str, more: Annotated[Whole, Field(ge=1, le=100_000)], request: gr.Request
    ) -> list[Any]:
        context = self.context.for_visitor(request)
        quotas.require_space(context, request)
        run = context.own_job(displayed).run
        with context.queue.index.writing():
            quotas.require_turns(context)
            context.queue.resume(displayed, run.config.steps + more)
        context.queue.start()
        return refresh(context, shown, None)

    @user_errors
    def sample_now(self, name: str, request: gr.Request) -> None:
        self.context.for_visitor(request).own_job(name).run.request("sample-now")
        say("Sample pictures follow after the current step.")

    @user_errors
    def share(self, name: str, shared: Flag, request: gr.Request) -> None:
        context = self.context.for_visitor(request)
        context.share(context.own_job(name).run.folder, shared)

    @user_errors
    def train_again(self, name: str, request: gr.Request) -> str:
        new = train_again(self.context.for_visitor(request), name)
        self.context.draft(request).save_values(watching=new)
        return new

    @user_errors
    def show(self, event: gr.EventData, request: gr.Request) -> Any:
        if clicked(event)["do"] != "show":
            return gr.skip(), gr.skip(), gr.skip()
        name = self.context.for_visitor(request).job(clicked(event)["run"]).run.name
        self.context.draft(request).save_values(watching=name)
        return name, None, gr.Tabs(selected="train")

    @user_errors
    def open_generate(self, name: str, request: gr.Request) -> tuple[Any, ...]:
        context = self.context.for_visitor(request)
        return _open_tab(context, "generate", context.job(name).run.adapter)

    @user_errors
    def open_checkpoint(self, name: str, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        context = self.context.for_visitor(request)
        checkpoint = context.job(name).run.checkpoint_folder(int(clicked(event)["step"]))
        return _open_tab(context, "generate", checkpoint / "adapter.safetensors")

    @user_errors
    def open_compare(self, name: str, request: gr.Request) -> tuple[Any, ...]:
        context = self.context.for_visitor(request)
        return _open_tab(context, "compare", *trained_on_same_photos(context, name))


def connect(
    context: AppContext, page: gr.Blocks, tabs: gr.Tabs, view: RunView, status: Any, generating: Any, comparing: Any
) -> None:
    """Connect the events. ``generating`` and ``comparing`` are the tabs that a finished run leads to."""
    events = Events(context)
    watching: dict[str, Any] = {"inputs": [view.shown, view.seen], "outputs": view.outputs}
    page.load(events.restore, None, view.shown, **QUIET).then(events.watch, **watching, **QUIET)
    status.changes["runs"].click(events.watch, **watching, **QUIET)
    view.stop.click(events.acting("stop"), [view.shown, view.displayed], view.outputs, **MINE)
    view.resume.click(events.acting("resume"), [view.shown, view.displayed], view.outputs, **MINE)
    view.go_on.click(events.go_on, [view.shown, view.displayed, view.more_steps], view.outputs, **MINE)
    view.sample_now.click(events.sample_now, view.displayed, None, **MINE)
    view.share.input(events.share, [view.displayed, view.share], None, **HIDDEN)
    view.again.click(events.train_again, view.displayed, view.shown, **MINE)
    view.generate.click(events.open_generate, view.displayed, [tabs, generating.adapters], **MINE)
    view.samples.click(events.open_checkpoint, view.displayed, [tabs, generating.adapters], **MINE)
    view.compare.click(events.open_compare, view.displayed, [tabs, comparing.adapters], **MINE)
    status.runs.click(events.show, None, [view.shown, view.seen, tabs], **MINE)


def trained_on_same_photos(context: AppContext, name: str) -> list[Path]:
    """Return the adapters of all finished runs on the same photos that the visitor may see, oldest first."""
    photos, found = context.job(name).run.config.photos, []
    for job in reversed(context.jobs()):
        with contextlib.suppress(UserError):  # a configuration edited by hand
            if job.status == "finished" and job.run.config.photos == photos:
                found.append(job.run.adapter)
    return found


def _open_tab(context: AppContext, tab: str, *adapters: Path) -> tuple[Any, ...]:
    chosen = [context.key(adapter) for adapter in adapters]
    return gr.Tabs(selected=tab), gr.update(choices=context.adapter_choices(), value=chosen)
