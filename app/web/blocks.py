"""The page, assembled from its tabs."""

import gradio as gr

from app.web import compare, generate, library, status_bar, train
from app.web.context import AppContext


def build(context: AppContext) -> gr.Blocks:
    """Build the page and connect its events."""
    with gr.Blocks(title="hra-diffusion", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        status = status_bar.build(context)
        with gr.Tabs(selected="train") as tabs:
            with gr.Tab("Train", id="train"):
                train_parts = train.build(context)
            with gr.Tab("Generate", id="generate") as generate_tab:
                generate_parts = generate.build(context)
            with gr.Tab("Compare", id="compare") as compare_tab:
                compare_parts = compare.build(context)
            with gr.Tab("Library", id="library") as library_tab:
                library_parts = library.build(context)
        status_bar.connect(context, page, status)
        train.connect(context, page, tabs, train_parts, status, generate_parts, compare_parts)
        generate.connect(context, page, generate_tab, tabs, generate_parts, compare_parts, context.drawings)
        compare.connect(context, page, compare_tab, compare_parts, context.drawings, status)
        library.connect(context, page, library_tab, tabs, library_parts, generate_parts)
    return page
