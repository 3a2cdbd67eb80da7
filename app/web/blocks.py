"""The page put together from its tabs."""

from typing import Any

import gradio as gr

from app.web import compare, generate, library, status_bar, train
from app.web.context import AppContext


def build(house: AppContext) -> Any:
    """The page's blocks."""
    with gr.Blocks(title="hra-diffusion", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        top = status_bar.build(house)
        with gr.Tabs(selected="teach") as tabs:
            with gr.Tab("Teach", id="teach"):
                teaching = train.build(house)
            with gr.Tab("Create", id="create") as create_tab:
                creating = generate.build(house)
            with gr.Tab("Compare", id="compare") as compare_tab:
                comparing = compare.build(house)
            with gr.Tab("Library", id="library") as library_tab:
                keeping = library.build(house)
        status_bar.connect(house, page, top, teaching)
        train.connect(house, page, tabs, teaching, top, creating, comparing)
        generate.connect(house, page, create_tab, tabs, creating, comparing)
        compare.connect(house, page, compare_tab, comparing)
        library.connect(house, page, library_tab, tabs, keeping, creating)
    return page
