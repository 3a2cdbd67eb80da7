"""The page put together from its tabs."""

from typing import Any

import gradio as gr

from app.web import compare, generate, library, status_bar, train
from app.web.context import AppContext


def build(context: AppContext) -> Any:
    """The page's blocks."""
    with gr.Blocks(title="hra-diffusion", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        top = status_bar.build(context)
        with gr.Tabs(selected="train") as tabs:
            with gr.Tab("Train", id="train"):
                training = train.build(context)
            with gr.Tab("Generate", id="generate") as generate_tab:
                generating = generate.build(context)
            with gr.Tab("Compare", id="compare") as compare_tab:
                comparing = compare.build(context)
            with gr.Tab("Library", id="library") as library_tab:
                keeping = library.build(context)
        status_bar.connect(context, page, top, training)
        train.connect(context, page, tabs, training, top, generating, comparing)
        generate.connect(context, page, generate_tab, tabs, generating, comparing)
        compare.connect(context, page, compare_tab, comparing)
        library.connect(context, page, library_tab, tabs, keeping, generating)
    return page
