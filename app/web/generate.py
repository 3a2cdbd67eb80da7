"""Generate tab: a prompt, adapters with their strengths, and images that appear while they are generated."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from app.inference_session import Cancelled
from app.web import quotas
from app.web.context import AppContext
from app.web.drawing_queue import DrawingQueue
from app.web.events import (
    HIDDEN,
    MINE,
    QUIET,
    UPLOAD,
    checked,
    clicked,
    progress_text,
    say,
    sender,
    user_errors,
    waiting_text,
)
from app.web.generate_images import (
    delete_image,
    images_folder,
    save_images,
    saved_images,
    show_images,
    show_progress,
)
from app.web.generate_request import (
    MAX_ADAPTERS,
    MAX_IMAGES,
    adapter_strengths,
    generate_images,
    read_request,
    resolve_prompt,
    values_from_settings,
    without_adapters,
)
from app.web.html import render
from app.web.theme import CLICKS
from app.web.values import DEFAULT_INFO, Keys, Strength, Text
from hra_diffusion.errors import UserError
from hra_diffusion.generation.png import read_png
from hra_diffusion.generation.schedulers import DEFAULT, SCHEDULERS

IDEAS = ("in the snow", "on the beach", "in the jungle", "on a cobblestone street", "on top of a wooden floor",
         "with a city in the background")  # fmt: skip


@dataclass
class GenerateTab:
    """Components of the tab. ``mixed`` holds the adapters that the strengths belong to."""

    adapters: gr.Dropdown
    strengths: list[gr.Slider]
    fusion: gr.Radio
    mixed: gr.State
    prompt: gr.Textbox
    ideas: gr.HTML
    prompt_used: gr.HTML
    generate: gr.Button
    stop: gr.Button
    count: gr.Slider
    seed: gr.Number
    lock: gr.Checkbox
    negative: gr.Textbox
    steps: gr.Number
    guidance: gr.Number
    scheduler: gr.Dropdown
    width: gr.Number
    height: gr.Number
    settings_file: gr.UploadButton
    images: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        """Everything that determines the images."""
        return [self.adapters, self.prompt, self.count, self.seed, self.lock, self.negative, self.steps, self.guidance,
                self.scheduler, self.width, self.height, self.fusion, *self.strengths]  # fmt: skip

    @property
    def filled(self) -> list[Any]:
        """Components that the settings inside a PNG fill in."""
        return [*self.inputs, self.mixed]


def build(context: AppContext) -> GenerateTab:
    """Lay out the tab."""
    parts: dict[str, Any] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            parts["adapters"] = gr.Dropdown(
                [], multiselect=True, max_choices=MAX_ADAPTERS, label="Adapters",
                info="Several can be combined. None: the base model alone.", elem_id="adapters",
            )  # fmt: skip
            parts["strengths"] = [
                gr.Slider(0, 1.5, 1, step=0.05, visible=False, label="Strength") for _ in range(MAX_ADAPTERS)
            ]
            parts["fusion"] = gr.Radio(
                [("one after another", "compose"), ("as one rotation", "geodesic")], value="compose", visible=False,
                label="Combine the adapters", info="As one rotation: HRA, HOFT and SHOFT only.",
            )  # fmt: skip
            parts["prompt"] = gr.Textbox(
                label="Prompt",
                placeholder="a photo of a dog in the snow",
                lines=2,
                max_length=600,
                elem_id="prompt",
                info="Weights from 0 to 2: (red hat:1.4); not with Stable Diffusion 3 and FLUX.2.",
            )
            parts["prompt_used"] = gr.HTML()
            parts["ideas"] = gr.HTML(render("generate_ideas", ideas=IDEAS), js_on_load=CLICKS)
            parts |= _more()
        with gr.Column(scale=6, min_width=320):
            parts["images"] = gr.HTML(js_on_load=CLICKS, elem_id="stage")
    return GenerateTab(**parts, mixed=gr.State([]))


def _more() -> dict[str, Any]:
    count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Pictures")
    with gr.Row():
        seed = gr.Number(0, precision=0, label="Seed", min_width=100)
        lock = gr.Checkbox(False, label="Lock the seed", min_width=110)
    with gr.Row():
        generate = gr.Button("Generate", variant="primary", size="lg", scale=3, elem_id="generate-button")
        stop = gr.Button("Stop", size="lg", scale=1, min_width=70)
    with gr.Accordion("More", open=False, elem_id="more"):
        negative = gr.Textbox(label="Negative prompt", info="What the picture should not show.", max_length=600)
        with gr.Row():
            # Gradio turns an empty number into 0 once the accordion opens
            steps = gr.Number(None, precision=0, label="Steps", info=DEFAULT_INFO, min_width=120)
            guidance = gr.Number(None, label="Guidance scale", info=DEFAULT_INFO, min_width=120)
            scheduler = gr.Dropdown(list(SCHEDULERS), value=DEFAULT, label="Scheduler", min_width=120)
        with gr.Row():
            width = gr.Number(None, precision=0, label="Width", info=DEFAULT_INFO, min_width=100)
            height = gr.Number(None, precision=0, label="Height", info=DEFAULT_INFO, min_width=100)
    settings_file = gr.UploadButton(
        "Reuse a picture’s settings: choose it, or drop or paste it anywhere", file_types=[".png"], size="sm",
        elem_id="settings-file",
    )  # fmt: skip
    return {"count": count, "seed": seed, "lock": lock, "generate": generate, "stop": stop, "negative": negative,
            "steps": steps, "guidance": guidance, "scheduler": scheduler, "width": width, "height": height,
            "settings_file": settings_file}  # fmt: skip


class Events:
    """Event handlers of the tab."""

    def __init__(self, context: AppContext, parts: GenerateTab, queue: DrawingQueue):
        self.context, self.parts, self.queue = context, parts, queue

    def choices(self, request: gr.Request) -> Any:
        return gr.update(choices=self.context.for_visitor(request).adapter_choices())

    def images(self, request: gr.Request) -> Markup:
        return show_images(self.context, request)

    @checked
    def sliders(self, request: gr.Request, adapters: Keys, mixed: list[str], *strengths: Strength) -> list[Any]:
        """Show a strength slider per adapter, which keeps its strength when its position changes, and the fusion."""
        labels = {key: label for label, key in self.context.for_visitor(request).adapter_choices()}
        current = dict(zip(mixed, strengths, strict=False))
        shown = [
            gr.update(visible=True, label=f"Strength of {labels.get(key, '')}", value=current.get(key, 1.0))
            for key in adapters[:MAX_ADAPTERS]
        ]
        return [*shown, *[gr.update(visible=False, value=1.0)] * (MAX_ADAPTERS - len(shown)), adapters,
                gr.update(visible=len(adapters) > 1)]  # fmt: skip

    @checked
    def show_prompt(self, adapters: Keys, prompt: Text, request: gr.Request) -> Markup:
        resolved = resolve_prompt(self.context.for_visitor(request), adapters, prompt)
        return render("prompt_used", prompt=resolved, changed=resolved and resolved != prompt)

    @checked
    def idea(self, event: gr.EventData, adapters: Keys, request: gr.Request) -> str:
        noun = self.context.for_visitor(request).subject_of(adapters[0])[1] if adapters else ""
        return f"a photo of a {noun or 'dog'} {clicked(event)['text']}"

    def earlier(self, request: gr.Request) -> Markup:
        return show_images(self.context, request) if saved_images(self.context, request) else Markup("")

    @user_errors
    def generate(self, request: gr.Request, *values: Any) -> Iterator[tuple[Markup, Any]]:
        generation, earlier, finished = read_request(values), self.earlier(request), []
        context = self.context.for_visitor(request)
        quotas.require_space(context, request)
        count, cost = generation.count, self.context.cost(generation.settings, generation.count)
        try:
            with self.queue.place(sender(request), cost, f"generate {request.session_hash}") as turn:
                quotas.count_images(context, request, count)
                for ahead in itertools.chain(self.queue.wait(turn), [0]):
                    text = waiting_text(self.context.session, ahead)
                    yield show_progress({}, count, 0, text, earlier), generation.seed
                for images, done in generate_images(context, generation, turn.cancelled):
                    finished = list(images.values()) if done == 1 else finished
                    text = progress_text(self.context.session, "Generating …")
                    yield show_progress(images, count, done, text, earlier), gr.skip()
        except Cancelled:
            say("Stopped.")
        except UserError:
            yield show_images(self.context, request), gr.skip()
            raise
        save_images(finished, images_folder(self.context, request))
        yield show_images(self.context, request), generation.seed

    def stop(self, request: gr.Request) -> Any:
        return (
            show_images(self.context, request) if self.queue.cancel(f"generate {request.session_hash}") else gr.skip()
        )

    @user_errors
    def load_settings(self, file: str | None, request: gr.Request) -> list[Any]:
        if not file:
            return [gr.skip()] * (len(self.parts.filled) + 1)
        return [None, *values_from_settings(self.context.for_visitor(request), read_png(Path(file)))]

    @user_errors
    def browse(self, event: gr.EventData, request: gr.Request) -> Markup:
        """Show another page of the images, or delete one."""
        data = clicked(event)
        if data["do"] == "delete":
            delete_image(self.context, request, data["file"])
        return show_images(self.context, request, data["at"])

    @user_errors
    def act_on_image(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        """Return updates of ``filled``, the tabs, and the Compare tab's prompts, seed and adapters."""
        action, file = clicked(event)["do"], Path(clicked(event)["file"]).name
        context = self.context.for_visitor(request)
        saved = read_png(images_folder(context, request) / file)
        if action == "compare":
            adapters = list(adapter_strengths(context, saved))
            unchanged = [gr.skip()] * len(self.parts.filled)
            return [*unchanged, gr.Tabs(selected="compare"), saved["prompt"], saved["seed"], adapters]
        if action == "again":
            saved = without_adapters(context, saved)
            say("Choose another adapter, then press Generate. Seed and settings are those of the picture.")
        return [*values_from_settings(context, saved), *[gr.skip()] * 4]


def connect(
    context: AppContext, page: gr.Blocks, tab: gr.Tab, tabs: gr.Tabs, parts: GenerateTab, comparing: Any,
    queue: DrawingQueue,
) -> None:  # fmt: skip
    """Connect the events."""
    events = Events(context, parts, queue)
    page.load(events.choices, None, parts.adapters, **QUIET)
    page.load(events.images, None, parts.images, **QUIET)
    tab.select(events.choices, None, parts.adapters, **QUIET)
    parts.adapters.change(
        events.sliders, [parts.adapters, parts.mixed, *parts.strengths],
        [*parts.strengths, parts.mixed, parts.fusion], **QUIET,
    )  # fmt: skip
    gr.on(
        [parts.adapters.change, parts.prompt.change], events.show_prompt, [parts.adapters, parts.prompt],
        parts.prompt_used, **QUIET,
    )  # fmt: skip
    parts.ideas.click(events.idea, parts.adapters, parts.prompt, **QUIET)
    gr.on(
        [parts.generate.click, parts.prompt.submit], events.generate, parts.inputs, [parts.images, parts.seed],
        preprocess=False, show_progress="hidden", concurrency_limit=None, trigger_mode="once", api_name="generate",
    )  # fmt: skip
    parts.stop.click(events.stop, None, parts.images, **QUIET)
    parts.settings_file.upload(
        events.load_settings, parts.settings_file, [parts.settings_file, *parts.filled], **UPLOAD
    )
    parts.images.select(events.browse, None, parts.images, **HIDDEN)
    compare_inputs = [tabs, comparing.prompts, comparing.seed, comparing.adapters]
    parts.images.click(events.act_on_image, None, [*parts.filled, *compare_inputs], **MINE).then(
        None, None, None, js="() => document.getElementById('adapters')?.scrollIntoView({block: 'nearest'})"
    )
