"""The page's theme (one warm accent on greys, system fonts, light and dark), styles and scripts."""

from pathlib import Path

import gradio as gr

EMBER = gr.themes.Color(
    c50="#fff5ef", c100="#ffe6d8", c200="#fecbb0", c300="#fca67c", c400="#f57f49", c500="#e4602a",
    c600="#c2481a", c700="#a03913", c800="#7d2f14", c900="#642a16", c950="#3a140a", name="ember",
)  # fmt: skip
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Return the theme, based on Gradio's. It loads no web fonts."""
    return gr.themes.Base(
        primary_hue=EMBER, secondary_hue=EMBER, neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md, font=FONT, font_mono=MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="#171412",
        background_fill_primary="white",
        background_fill_primary_dark="#211d1a",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="#2a2522",
        block_background_fill="white",
        block_background_fill_dark="#211d1a",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="#3a332e",
        border_color_primary="*neutral_200",
        border_color_primary_dark="#3a332e",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_border_width="0px",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_200",
        block_title_text_weight="600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        input_background_fill="*neutral_50",
        input_background_fill_dark="#171412",
        input_border_color="*neutral_300",
        input_border_color_dark="#4a413b",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        color_accent_soft="*primary_50",
        color_accent_soft_dark="#3a241a",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="#2f2925",
        button_secondary_background_fill_hover_dark="#3a332e",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="#4a413b",
        button_border_width="1px",
        slider_color="*primary_600",
        slider_color_dark="*primary_500",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_400",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_500",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_600",
    )  # fmt: skip


HERE = Path(__file__).parent
CLICKS = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-do]');
  if (!button) return;
  const {confirm, on, ...data} = button.dataset;
  if (confirm && button.textContent !== confirm) button.textContent = confirm;
  else trigger(on || 'click', data);
});
"""
"""Script of a gr.HTML that reports clicks on its buttons to Python, with their data-… attributes (data-do first).

A button with data-confirm shows that text first and reports a second click; data-on names another event than "click".
"""


def css() -> str:
    """Return the page's styles."""
    return (HERE / "page.css").read_text(encoding="utf-8")


def head() -> str:
    """Return the page's scripts: enlarging images, dropping and pasting files anywhere, following changes."""
    scripts = [(HERE / name).read_text(encoding="utf-8") for name in ("zoom.js", "drop.js", "pulse.js")]
    return "".join(f"<script>{script}</script>" for script in scripts)
