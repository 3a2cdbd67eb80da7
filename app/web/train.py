"""Train tab: photos, what they show, how to train; the current run beside them."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.web import base_chooser, quotas, run_view, train_form, train_photos
from app.web.context import AppContext
from app.web.events import MINE, QUIET, say, user_errors
from app.web.status_bar import StatusBar
from app.web.train_config import FormValues, queue_runs
from app.web.values import Line


@dataclass
class TrainTab:
    """Components of the tab."""

    photos: train_photos.PhotoEditor
    base: base_chooser.BaseChooser
    form: train_form.TrainForm
    start: gr.Button
    run: run_view.RunView


def build(context: AppContext) -> TrainTab:
    """Lay the tab out."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            photos = train_photos.build()
            base = base_chooser.build(context)
            form = train_form.build()
            start = gr.Button("Train", variant="primary", size="lg", elem_id="train-button")
            form.forecast.render()
        with gr.Column(scale=6, min_width=320):
            run = run_view.build()
    return TrainTab(photos, base, form, start, run)


def connect(
    context: AppContext, page: gr.Blocks, tabs: gr.Tabs, tab: TrainTab, status: StatusBar, generating: Any,
    comparing: Any,
) -> None:  # fmt: skip
    """Wire the tab."""
    form = tab.form
    crop = next(entry.component for entry in form.entries if entry.name == "crop")
    train_photos.connect(context, page, tab.photos, form.noun, form.name, crop)
    base_chooser.connect(context, page, tab.base, tab.photos, status)
    train_form.connect(context, page, form, tab.photos, status)
    train_form.connect_captions(context, form, tab.photos)
    run_view.connect(context, page, tabs, tab.run, status, generating, comparing)

    @user_errors
    def start(request: gr.Request, base: Line, *values: Any) -> str:
        draft = context.draft(request)
        quotas.require_space(context.for_visitor(request), request)
        names = queue_runs(context.for_visitor(request), form.entries, draft, base, FormValues.of(values))
        draft.save_values(watching=names[0])
        say(f"{', '.join(names)}: in the queue. Training continues if you close this page.")
        return names[0]

    tab.start.click(start, [status.base, *form.inputs], tab.run.shown, **MINE).then(
        lambda: None, None, tab.run.seen, **QUIET
    ).then(None, None, None, js="() => document.getElementById('run')?.scrollIntoView({block: 'nearest'})")
