"""The Generate tab: a prompt, the adapters in use, and pictures that arrive while they are drawn."""

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import starmap
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from app.inference_session import Cancelled, Preview
from app.web.compare import for_every_subject
from app.web.context import (
    DEVICE_QUEUE,
    HIDDEN,
    MINE,
    QUIET,
    AppContext,
    CancellationRegistry,
    clicked,
    user_errors,
    user_errors_each,
    waiting,
)
from app.web.html import bar, button, empty, note, picture, served
from app.web.theme import CLICKS
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder
from hra_diffusion.generation.png import PNG_KEY, read_png, save_png, slug
from hra_diffusion.generation.previews import OnStep
from hra_diffusion.generation.requests import SIZE_CONDITIONING, Settings
from hra_diffusion.generation.sampling import generate
from hra_diffusion.generation.schedulers import SCHEDULERS
from hra_diffusion.generation.subjects import with_subject

MOST_ADAPTERS, MOST_PICTURES, KEPT = 4, 8, 24
LARGEST = 2048
BASES_OWN = "0: the base's own"
IDEAS = ("in the snow", "on the beach", "in the jungle", "on a cobblestone street", "on top of a wooden floor",
         "with a city in the background")  # fmt: skip


@dataclass
class GenerateTab:
    """The tab's components. ``mixed``: the adapters that the strengths belong to."""

    adapters: gr.Dropdown
    strengths: list[gr.Slider]
    mixed: gr.State
    prompt: gr.Textbox
    ideas: gr.HTML
    spoken: gr.HTML
    draw: gr.Button
    stop: gr.Button
    count: gr.Slider
    seed: gr.Number
    lock: gr.Checkbox
    negative: gr.Textbox
    steps: gr.Slider
    guidance: gr.Number
    scheduler: gr.Dropdown
    width: gr.Number
    height: gr.Number
    made: gr.UploadButton
    stage: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        """All that decides the pictures."""
        return [self.adapters, self.prompt, self.count, self.seed, self.lock, self.negative, self.steps, self.guidance,
                self.scheduler, self.width, self.height, *self.strengths]  # fmt: skip

    @property
    def filled(self) -> list[Any]:
        """What the settings inside a picture fill in."""
        return [*self.inputs, self.mixed]


@dataclass(frozen=True)
class GenerationRequest:
    """The tab's values, by name."""

    adapters: Sequence[str]
    prompt: str
    count: int
    seed: int
    lock: bool
    negative: str
    steps: int
    guidance: float | None
    scheduler: str
    width: int | None
    height: int | None
    strengths: Sequence[float]

    @property
    def settings(self) -> Settings:
        """What the pictures share."""
        return Settings(int(self.steps), self.guidance or None, self.scheduler, _size(self.width), _size(self.height))


def build(context: AppContext) -> GenerateTab:
    """Lay the tab out."""
    parts: dict[str, Any] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            parts["adapters"] = gr.Dropdown(
                context.adapter_choices(), multiselect=True, max_choices=MOST_ADAPTERS, label="Adapters",
                info="What you taught; several mix. None: the base model alone.", elem_id="adapters",
            )  # fmt: skip
            parts["strengths"] = [
                gr.Slider(0, 1.5, 1, step=0.05, visible=False, label="Strength") for _ in range(MOST_ADAPTERS)
            ]
            parts["prompt"] = gr.Textbox(
                label="Prompt",
                placeholder="a photo of a dog in the snow",
                lines=2,
                max_length=600,
                elem_id="prompt",
                info="Weights: (red hat:1.4); from 0 to 2.",
            )
            parts["spoken"] = gr.HTML()
            chips = "".join(button(idea, "idea", text=idea) for idea in IDEAS)
            parts["ideas"] = gr.HTML(
                f'<div style="display:flex;gap:6px;flex-wrap:wrap">{chips}</div>', js_on_load=CLICKS
            )
            parts |= _more()
        with gr.Column(scale=6, min_width=320):
            parts["stage"] = gr.HTML(js_on_load=CLICKS, elem_id="stage")
    return GenerateTab(**parts, mixed=gr.State([]))


def _more() -> dict[str, Any]:
    count = gr.Slider(1, MOST_PICTURES, 4, step=1, label="Pictures")
    with gr.Row():
        seed = gr.Number(0, precision=0, label="Seed", min_width=100)
        lock = gr.Checkbox(False, label="Keep the seed", min_width=110)
    with gr.Row():
        draw = gr.Button("Generate", variant="primary", size="lg", scale=3, elem_id="generate-button")
        stop = gr.Button("Stop", size="lg", scale=1, min_width=70)
    with gr.Accordion("More", open=False, elem_id="more"):
        negative = gr.Textbox(label="Negative prompt", info="What should not be in the picture.", max_length=600)
        with gr.Row():
            steps = gr.Slider(1, 100, 25, step=1, label="Steps", min_width=120)
            # the page makes 0 of an empty number as soon as it is unfolded
            guidance = gr.Number(None, label="Guidance scale", info=BASES_OWN, min_width=120)
            scheduler = gr.Dropdown(list(SCHEDULERS), value="dpm++", label="Scheduler", min_width=120)
        with gr.Row():
            width = gr.Number(None, precision=0, label="Width", info=BASES_OWN, min_width=100)
            height = gr.Number(None, precision=0, label="Height", info=BASES_OWN, min_width=100)
    made = gr.UploadButton("What made a picture? Choose it, or drop or paste it anywhere", file_types=[".png"],
                           size="sm", elem_id="made")  # fmt: skip
    return {"count": count, "seed": seed, "lock": lock, "draw": draw, "stop": stop, "negative": negative,
            "steps": steps, "guidance": guidance, "scheduler": scheduler, "width": width, "height": height,
            "made": made}  # fmt: skip


def read_wish(values: Sequence[Any]) -> GenerationRequest:
    """The tab's values; without a kept seed, or with −1 as other programs have it, a new one is rolled.

    Raises UserError for what is too large. (The page's own refusal of a number would end without a word.)
    """
    adapters, prompt, count, seed, lock, negative, steps, guidance, scheduler, width, height, *strengths = values
    if max(width or 0, height or 0) > LARGEST:
        raise UserError(f"a picture is at most {LARGEST} pixels wide and high here")
    if (seed or 0) >= 2**63:
        raise UserError(f"the seed {seed} is too large; the largest is {2**63 - 1}")
    seed = int(seed or 0) if lock and (seed or 0) >= 0 else random.randrange(2**31)
    count = min(int(count), MOST_PICTURES)
    return GenerationRequest(
        adapters or [],
        prompt or "",
        count,
        seed,
        lock,
        negative or "",
        steps,
        guidance,
        scheduler,
        width,
        height,
        strengths,
    )


def spoken(context: AppContext, adapters: Sequence[str], prompt: str) -> str:
    """The prompt as it will be drawn: with each subject's word in it."""
    for key in adapters or ():
        prompt = with_subject(prompt or "", *context.subject_of(key))
    return prompt or ""


def draw(
    context: AppContext, wish: GenerationRequest, stop: threading.Event
) -> Iterator[tuple[Mapping[int, Image.Image], float]]:
    """Draw what is wished for: what there is by now and how far it is, then the finished pictures with 1.0."""
    session, prompt = context.session, spoken(context, wish.adapters, wish.prompt)
    if not prompt.strip():
        raise UserError("Say what to draw: a prompt like “a photo of a dog in the snow”.")

    def pictures(on_step: OnStep) -> list[Image.Image]:
        infos = session.load_adapters([context.file(key) for key in wish.adapters])
        mix = {info.name: strength for info, strength in zip(infos, wish.strengths, strict=False)}
        return generate(
            session.pipe, prompt, mix, int(wish.seed), int(wish.count), wish.settings, wish.negative, on_step=on_step
        )

    for news in session.watch(pictures, int(wish.count), stop):
        if isinstance(news, Preview):
            yield news.pictures, min(news.done, 0.99)
        else:
            yield dict(enumerate(news.value)), 1.0


def keep(pictures: Sequence[Image.Image], folder: Path) -> list[Path]:
    """Save pictures with their settings inside; numbers go on from those that are there."""
    make_folder(folder)
    first = max((int(path.name[:5]) for path in folder.glob("[0-9]*.png")), default=-1) + 1
    return [
        save_png(image, folder / f"{first + i:05d}-{slug(image.info[PNG_KEY]['prompt'])}.png")
        for i, image in enumerate(pictures)
    ]


def show_stage(context: AppContext, request: gr.Request) -> str:
    """This visitor's pictures, newest first and without damaged ones, below the notes on the newest one's prompt."""
    files = sorted((context.own(request) / "pictures").glob("[0-9]*.png"), reverse=True)[:KEPT]
    kept = {file: made for file in files if (made := _settings(file))}
    if not kept:
        return empty(
            "No pictures yet",
            "Choose what you taught, write where it should be, press Generate. Pictures appear here as they are drawn.",
            "drawn",
        )
    notes = note(next(iter(kept.values())).get("notes", ()), "plain")
    return f'{notes}<div class="pictures large" data-group>{"".join(starmap(_kept, kept.items()))}</div>'


def _settings(file: Path) -> dict[str, Any] | None:
    """The settings inside a picture; None for a damaged one."""
    try:
        return read_png(file)
    except UserError:
        return None


def _kept(file: Path, made: Mapping[str, Any]) -> str:
    """A picture with its buttons."""
    about = f"{made['prompt']} · seed {made['seed']}"
    save = f'<a class="act" href="{escape(served(file))}" download="{escape(file.name)}">Save</a>'
    more = {"settings": "Settings", "again": "Another adapter", "compare": "Compare"}
    actions = save + "".join(button(text, do, file=file.name) for do, text in more.items())
    return f'<figure class="picture">{picture(file, about)}<figcaption>{actions}</figcaption></figure>'


def show_drawing(pictures: Mapping[int, Image.Image], count: int, done: float, text: str, before: str = "") -> str:
    """Pictures on their way, above those that were there."""
    cells = [
        f'<figure class="picture drawing">{picture(pictures[i], "being drawn", zoom=False)}</figure>'
        if i in pictures
        else '<div class="blank"></div>'
        for i in range(count)
    ]
    line = f'<p role="status">{escape(text)}</p>{bar(done, "drawing")}'
    return f'{line}<div class="pictures large" style="margin:12px 0">{"".join(cells)}</div>{before}'


class Events:
    """What the tab's buttons do."""

    def __init__(self, context: AppContext, parts: GenerateTab):
        self.context, self.parts = context, parts
        self.stops = CancellationRegistry()

    def choices(self) -> Any:
        return gr.update(choices=self.context.adapter_choices())

    def sliders(self, adapters: list[str] | None, mixed: list[str], *strengths: float) -> list[Any]:
        """Each adapter keeps its own strength, wherever in the row it now is."""
        labels = {key: label for label, key in self.context.adapter_choices()}
        own = dict(zip(mixed, strengths, strict=False))
        shown = [
            gr.update(visible=True, label=f"Strength of {labels.get(key, '')}", value=own.get(key, 1.0))
            for key in (adapters or [])[:MOST_ADAPTERS]
        ]
        return [*shown, *[gr.update(visible=False, value=1.0)] * (MOST_ADAPTERS - len(shown)), adapters or []]

    def show_prompt(self, adapters: list[str] | None, prompt: str) -> str:
        drawn = spoken(self.context, adapters or [], prompt)
        return f'<p class="soft small">Drawn as: <b>{escape(drawn)}</b></p>' if drawn and drawn != prompt else ""

    def idea(self, event: gr.EventData, adapters: list[str] | None) -> str:
        noun = self.context.subject_of(adapters[0])[1] if adapters else ""
        return f"a photo of a {noun or 'dog'} {clicked(event)['text']}"

    @user_errors
    def ready(self, request: gr.Request, *values: Any) -> str:
        """Given all of the tab's values, though few matter: one that is refused is so before a turn is booked."""
        wish = read_wish(values)
        self.stops.ready(request)
        return show_drawing({}, wish.count, 0, waiting(self.context.session), self.before(request))

    def before(self, request: gr.Request) -> str:
        stage = show_stage(self.context, request)
        return "" if 'class="empty"' in stage else stage

    @user_errors_each
    def create(self, request: gr.Request, *values: Any) -> Iterator[tuple[str, Any]]:
        wish, before, finished = read_wish(values), self.before(request), []
        try:
            with self.stops.drawing(request) as stop:
                yield show_drawing({}, wish.count, 0, waiting(self.context.session), before), wish.seed
                for pictures, done in draw(self.context, wish, stop):
                    finished = list(pictures.values()) if done == 1 else finished
                    yield show_drawing(pictures, wish.count, done, "drawing …", before), gr.skip()
        except Cancelled:
            gr.Info("Stopped.")
        except UserError:
            yield show_stage(self.context, request), gr.skip()
            raise
        keep(finished, self.context.own(request) / "pictures")
        yield show_stage(self.context, request), wish.seed

    def halt(self, request: gr.Request) -> Any:
        return show_stage(self.context, request) if self.stops.stop(request) else gr.skip()

    @user_errors
    def take_settings(self, file: str | None) -> list[Any]:
        return (
            [None, *_fill(self.context, read_png(Path(file)))] if file else [gr.skip()] * (len(self.parts.filled) + 1)
        )

    @user_errors
    def on_picture(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        path = self.context.own(request) / "pictures" / Path(clicked(event)["file"]).name
        made = read_png(path)
        untouched = [gr.skip()] * len(self.parts.filled)
        if clicked(event)["do"] == "compare":
            return [
                *untouched,
                gr.Tabs(selected="compare"),
                made["prompt"],
                made["seed"],
                list(_mix(self.context, made)),
            ]
        if clicked(event)["do"] == "again":
            made = _for_another(self.context, made)
            gr.Info("Choose another adapter, then press Generate: seed and settings are the picture’s.")
        return [*_fill(self.context, made), gr.skip(), gr.skip(), gr.skip(), gr.skip()]


def connect(
    context: AppContext, page: gr.Blocks, tab: gr.Tab, tabs: gr.Tabs, parts: GenerateTab, comparing: Any
) -> None:
    """Wire the tab."""
    events = Events(context, parts)
    page.load(events.choices, None, parts.adapters, **QUIET)
    page.load(show_stage_of(context), None, parts.stage, **QUIET)
    tab.select(events.choices, None, parts.adapters, **QUIET)
    parts.adapters.change(
        events.sliders, [parts.adapters, parts.mixed, *parts.strengths], [*parts.strengths, parts.mixed], **QUIET
    )
    gr.on(
        [parts.adapters.change, parts.prompt.change],
        events.show_prompt,
        [parts.adapters, parts.prompt],
        parts.spoken,
        **QUIET,
    )
    parts.ideas.click(events.idea, parts.adapters, parts.prompt, **QUIET)
    drawing: dict[str, Any] = {"inputs": parts.inputs, "outputs": [parts.stage, parts.seed], "show_progress": "hidden"}
    device = {"concurrency_id": DEVICE_QUEUE, "concurrency_limit": 1}
    gr.on([parts.draw.click, parts.prompt.submit], events.ready, parts.inputs, parts.stage, **HIDDEN).success(
        events.create, **drawing, **device, trigger_mode="multiple", api_name="generate"
    )
    parts.stop.click(events.halt, None, parts.stage, **QUIET)
    parts.made.upload(events.take_settings, parts.made, [parts.made, *parts.filled], **MINE)
    beside = [tabs, comparing.prompts, comparing.seed, comparing.adapters]
    parts.stage.click(events.on_picture, None, [*parts.filled, *beside], **MINE).then(
        None, None, None, js="() => document.getElementById('adapters')?.scrollIntoView({block: 'nearest'})"
    )


def show_stage_of(context: AppContext) -> Any:
    """``show_stage`` as an event of the page."""

    def shown(request: gr.Request) -> str:
        return show_stage(context, request)

    return shown


def _mix(context: AppContext, made: Mapping[str, Any]) -> dict[str, float]:
    """The adapters a picture was drawn with that are still here, by key, with their strengths."""
    known = dict(context.adapter_choices())
    return {known[name]: strength for name, strength in made["adapters"].items() if name in known}


def _fill(context: AppContext, made: Mapping[str, Any]) -> list[Any]:
    """The settings inside a picture as values of what they fill in; the seed is kept then."""
    known, mix = {name for name, _ in context.adapter_choices()}, _mix(context, made)
    if missing := [name for name in made["adapters"] if name not in known]:
        gr.Warning(f"drawn with {', '.join(missing)}, which is not in the library")
    size = [made["height"], made["width"]]
    usual = dict(zip(SIZE_CONDITIONING, (size, [0, 0], size), strict=True))
    if others := [name for name in usual if made.get(name, usual[name]) != usual[name]]:
        gr.Warning(f"drawn with another {', '.join(others)} than the page uses; the command line's generate can set it")
    strengths = [*mix.values(), *[1.0] * MOST_ADAPTERS][:MOST_ADAPTERS]
    return [
        list(mix), made["prompt"], 1, made["seed"], True, made["negative_prompt"], made["steps"],
        made["guidance_scale"], made["scheduler"], made["width"], made["height"], *strengths, list(mix),
    ]  # fmt: skip


def _for_another(context: AppContext, made: Mapping[str, Any]) -> dict[str, Any]:
    """The settings inside a picture without its adapters, {subject} in the place of the first one's own."""
    first = next(iter(_mix(context, made)), None)
    prompt = for_every_subject(made["prompt"], read_info(context.file(first))) if first else made["prompt"]
    return {**made, "adapters": {}, "prompt": prompt}


def _size(value: float | None) -> int | None:
    return int(value) if value else None
