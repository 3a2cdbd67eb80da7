"""A run on the page: how it stands, its losses, its sample pictures, and what can be done about it."""

import contextlib
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.web.context import MINE, QUIET, AppContext, changed, clicked, user_errors
from app.web.html import badge, bar, button, empty, facts, loss_plot, note, picture
from app.web.status_bar import WORDS, do, standing
from app.web.theme import CLICKS
from hra_diffusion.adapters import registry
from hra_diffusion.comparison.statistics import score_summary as figures
from hra_diffusion.errors import UserError
from training import config as configs
from training import scoring
from training.config import TrainConfig
from training.memory import advice
from training.runs import progress
from training.runs.queue import OVER, Job


@dataclass
class RunView:
    """The components. ``shown``: the run's name, "" for the one in progress or the newest; ``seen``: what was sent."""

    head: gr.HTML
    plot: gr.HTML
    rounds: gr.HTML
    log: gr.HTML
    log_fold: gr.Accordion
    stop: gr.Button
    sample: gr.Button
    resume: gr.Button
    again: gr.Button
    generate: gr.Button
    compare: gr.Button
    shown: gr.State
    seen: gr.State

    @property
    def outputs(self) -> list[Any]:
        """What a look at the run may change."""
        return [self.head, self.plot, self.rounds, self.log, self.log_fold, *self.buttons, self.seen]

    @property
    def buttons(self) -> list[Any]:
        """In the order of ``_offers``."""
        return [self.stop, self.sample, self.resume, self.again, self.generate, self.compare]


def build() -> RunView:
    """Lay it out."""
    with gr.Column(elem_id="run"):
        head, plot = gr.HTML(elem_id="run-head"), gr.HTML()
        with gr.Row():
            buttons = {
                "generate": gr.Button("Generate with it", variant="primary", visible=False, size="md", min_width=120),
                "compare": gr.Button("Compare", visible=False, size="md", min_width=100),
                "stop": gr.Button("Stop, keep what it learned", visible=False, size="md", min_width=120),
                "sample": gr.Button("Draw samples now", visible=False, size="md", min_width=120),
                "resume": gr.Button("Resume", variant="primary", visible=False, size="md", min_width=100),
                "again": gr.Button(
                    "Train again with this change", variant="primary", visible=False, size="md", min_width=120
                ),
            }
        rounds = gr.HTML(js_on_load=CLICKS, elem_id="rounds")
        with gr.Accordion("Log", open=False, visible=False) as log_fold:
            log = gr.HTML()
    return RunView(head, plot, rounds, log, log_fold, **buttons, shown=gr.State(""), seen=gr.State())


def find(context: AppContext, name: str) -> Job | None:
    """The run of that name; without one the run in progress, or the newest."""
    jobs = context.queue.jobs()
    return next((job for job in jobs if job.run.name == name), jobs[0] if jobs else None)


def look(context: AppContext, name: str, seen: tuple[str, str] | None) -> list[Any]:
    """Everything about the run that has changed since ``seen``."""
    job = find(context, name)
    if job is None:
        what = "Drop a few photos, say what it is, press Train. You can watch it learn here."
        return _only(empty("Nothing taught yet", what), seen)
    try:
        told, config = progress.read(job.run), job.run.config
    except UserError as error:  # a configuration changed by hand, or of another version
        return _only(note(f"{job.run.name} can't be shown: {error}", "bad"), seen)
    head = show_head(job, told, config)
    drawn = [job.run.name, sorted(told.samples), told.checkpoints, sorted(told.scores)]
    one = changed([head, told.step, len(told.losses), told.log[-1:]], seen[0] if seen else None)
    two = changed(drawn, seen[1] if seen else None)
    if not one and not two:
        return [gr.skip()] * 12
    now = (one or seen[0], two or seen[1])  # type: ignore[index]
    return [
        head,
        show_plot(told, job.steps),
        show_rounds(job, told, config) if two else gr.skip(),
        show_log(job, told),
        gr.update(visible=True),
        *_offers(job),
        now,
    ]


def _only(text: str, seen: tuple[str, str] | None) -> list[Any]:
    """Nothing but this text, once."""
    now = (text, "")
    return [gr.skip()] * 12 if now == seen else [text, "", "", "", gr.update(visible=False), *_offers(None), now]


def show_head(job: Job, told: progress.Progress, config: TrainConfig) -> str:
    """Name, standing, and what the person should know now."""
    name, method = escape(job.run.name), registry.get_method(config.method).title
    kind = {"failed": "bad", "died": "warn", "finished": "ok", "stopped": ""}.get(job.status, "")
    status = "learning" if job.status == "running" else WORDS.get(job.status, job.status)
    line = f'<div class="head"><h2>{name}</h2>{badge(method)} {badge(status, kind)}</div>'
    return f"<div>{line}{_standing(job, told)}{note(told.notices[-4:])}</div>"


def _standing(job: Job, told: progress.Progress) -> str:
    part = told.step / max(1, job.steps)
    match job.status:
        case "running":
            return f"<p>{standing(job, told)}</p>{bar(part, f'{job.run.name} learning')}"
        case "waiting":
            before = "next in the queue" if not job.place else f"{job.place} before it in the queue"
            return f"<p>Waits: {before}.</p>"
        case "stopped":
            return note(
                f"Stopped at step {job.step} of {job.steps}; what it learned is kept. Resume goes on exactly there.",
                "plain",
            )
        case "died":
            return note(
                f"It broke off at step {told.step} of {job.steps}: a crash or a power cut. "
                "Resume goes on from its last checkpoint."
            )
        case "failed":
            tip = advice.advise(job.reason, job.run.config)
            return note(f"It failed: {job.reason}", "bad") + note(tip.text, "plain")
    minutes = progress.duration(sum(job.run.state.get("seconds", {}).values()))
    return (
        f'<p><b>{escape(job.run.name)} is ready</b> <span class="soft">after {job.steps} steps, {minutes}.</span></p>'
    )


def show_plot(told: progress.Progress, total: int) -> str:
    """The losses so far."""
    steps, losses = list(told.losses), list(told.losses.values())
    smooth = progress.smoothed(losses)
    if len(steps) < 2:
        return ""
    text = "It falls a little and stays noisy: the pictures tell more."
    legend = f'<p class="soft small">Loss, smoothed: <b>{smooth[-1]:.3f}</b>. {text}</p>'
    return loss_plot(steps, losses, smooth, max(total, steps[-1])) + legend


def show_rounds(job: Job, told: progress.Progress, config: TrainConfig) -> str:
    """The sample pictures, newest first, down to what the base drew before it learned anything."""
    rows, best = [], scoring.best(told.scores)
    for step in sorted(told.samples, reverse=True):
        prompts = [prompt.replace("{subject}", config.subject) for prompt in config.sample_prompts]
        files = [job.run.folder / "samples" / name for name in told.samples[step]]
        cells = "".join(
            f"<figure>{picture(file, f'step {step}: {prompt}')}</figure>"
            for file, prompt in zip(files, prompts, strict=False)
            if file.is_file()
        )
        what = f"<b>step {step}</b>" if step else '<b>before</b><span class="soft small">the base’s own idea</span>'
        use = button("Try this one", "try", step=step) if step in told.checkpoints else ""
        if score := told.scores.get(step):
            what += f'<span class="soft small">{figures(score)}</span>' + (badge("best by CLIP", "ok") * (step == best))
        rows.append(f'<div class="round"><div>{what}{use}</div><div class="row">{cells}</div></div>')
    return f'<div class="rounds" data-group>{"".join(rows)}</div>' if rows else ""


def show_log(job: Job, told: progress.Progress) -> str:
    """The last lines of the run and, where it broke, of its process."""
    lines = [*told.log, *(progress.process_log(job.run) if job.status in ("failed", "died") else [])]
    folder = facts([("folder", job.run.folder.name)])
    return f'{folder}<pre class="log">{escape(chr(10).join(lines)) or "nothing yet"}</pre>'


def _offers(job: Job | None) -> list[Any]:
    """Which buttons make sense now."""
    status = job.status if job else ""
    has_advice = bool(job and status == "failed" and advice.advise(job.reason, job.run.config).changes)
    done = status == "finished"
    visible = [status == "running", status == "running", status in OVER and not has_advice, has_advice, done, done]
    return [gr.update(visible=v) for v in visible]


def again(context: AppContext, name: str) -> str:
    """Teach once more with what the advice changes, under a free name; returns that."""
    job = context.queue.job(name)
    config, number = job.run.config, 2
    while (context.output / (new := f"{name} {number}")).exists():
        number += 1
    values = config.model_dump(mode="json") | advice.advise(job.reason, config).changes | {"name": new}
    context.queue.add(configs.parse(values))
    context.queue.start()
    return new


class Events:
    """What the buttons of a run do."""

    def __init__(self, context: AppContext):
        self.context = context

    def watch(self, name: str, seen: Any) -> list[Any]:
        return look(self.context, name, seen)

    def bring_back(self, request: gr.Request) -> str:
        return self.context.draft(request).read().values.get("watching", "")

    def current(self, name: str) -> str:
        job = find(self.context, name)
        if job is None:
            raise UserError("there is no run yet")
        return job.run.name

    def acting(self, what: str) -> Any:
        @user_errors
        def act(name: str) -> list[Any]:
            do(self.context, what, self.current(name))
            return look(self.context, name, None)

        return act

    @user_errors
    def sample_now(self, name: str) -> None:
        self.context.queue.job(self.current(name)).run.ask_for_samples()
        gr.Info("Sample pictures come after the step at hand.")

    @user_errors
    def teach_again(self, name: str, request: gr.Request) -> str:
        new = again(self.context, self.current(name))
        self.context.draft(request).keep(watching=new)
        return new

    @user_errors
    def show(self, event: gr.EventData, request: gr.Request) -> Any:
        if clicked(event)["do"] != "show":
            return gr.skip(), gr.skip(), gr.skip()
        name = self.context.queue.job(clicked(event)["run"]).run.name
        self.context.draft(request).keep(watching=name)
        return name, None, gr.Tabs(selected="train")

    @user_errors
    def use(self, name: str) -> tuple[Any, ...]:
        return _go_to(self.context, "generate", self.context.queue.job(self.current(name)).run.adapter)

    @user_errors
    def try_step(self, name: str, event: gr.EventData) -> tuple[Any, ...]:
        run = self.context.queue.job(self.current(name)).run
        return _go_to(self.context, "generate", run.checkpoint(int(clicked(event)["step"])) / "adapter.safetensors")

    @user_errors
    def set_beside(self, name: str) -> tuple[Any, ...]:
        return _go_to(self.context, "compare", *taught_together(self.context, self.current(name)))


def connect(
    context: AppContext, page: gr.Blocks, tabs: gr.Tabs, view: RunView, status: Any, generating: Any, comparing: Any
) -> None:
    """Wire it. ``generating`` and ``comparing`` are the tabs that a taught subject goes on to."""
    events = Events(context)
    looking: dict[str, Any] = {"inputs": [view.shown, view.seen], "outputs": view.outputs}
    page.load(events.bring_back, None, view.shown, **QUIET).then(events.watch, **looking, **QUIET)
    status.timer.tick(events.watch, **looking, **QUIET)
    view.stop.click(events.acting("stop"), view.shown, view.outputs, **MINE)
    view.resume.click(events.acting("resume"), view.shown, view.outputs, **MINE)
    view.sample.click(events.sample_now, view.shown, None, **MINE)
    view.again.click(events.teach_again, view.shown, view.shown, **MINE)
    view.generate.click(events.use, view.shown, [tabs, generating.adapters], **MINE)
    view.rounds.click(events.try_step, view.shown, [tabs, generating.adapters], **MINE)
    view.compare.click(events.set_beside, view.shown, [tabs, comparing.adapters], **MINE)
    status.runs.click(events.show, None, [view.shown, view.seen, tabs], **MINE)


def taught_together(context: AppContext, name: str) -> list[Path]:
    """The adapters of this run and of the finished ones that learned from the very same photos, oldest first."""
    photos, found = context.queue.job(name).run.config.photos, []
    for job in reversed(context.queue.jobs()):
        with contextlib.suppress(UserError):  # a configuration changed by hand is no part of it
            if job.status == "finished" and job.run.config.photos == photos:
                found.append(job.run.adapter)
    return found


def _go_to(context: AppContext, tab: str, *adapters: Path) -> tuple[Any, ...]:
    chosen = [context.key(adapter) for adapter in adapters]
    return gr.Tabs(selected=tab), gr.update(choices=context.adapter_choices(), value=chosen)
