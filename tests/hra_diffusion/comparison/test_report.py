"""The comparison report: one self-contained file in which every value is escaped."""

import re

import pytest
from conftest import tiny_pipe

import hra_diffusion as hra
from hra_diffusion.comparison import report
from hra_diffusion.comparison.plot import Point, scatter
from hra_diffusion.comparison.votes import Vote

SCRIPT = "<script>alert('\"&')</script>"


@pytest.fixture(scope="module")
def comparison():
    variants = [hra.Variant("base", {}, "dog"), hra.Variant(SCRIPT, {}, "dog")]
    return hra.compare(tiny_pipe(), variants, [f"a {{subject}} & {SCRIPT}"], [1, 2], hra.Settings(steps=1))


def test_the_report_is_self_contained(comparison, tmp_path):
    html = report.write(comparison, tmp_path / "report.html", [Vote("subject", "base", SCRIPT)]).read_text()
    assert html.count("data:image/png;base64,") == 4 and "Blind votes" in html
    assert not re.search(r'(src|href)="(?!data:)', html) and "http" not in html.replace("charset", "")


def test_prompts_and_labels_are_escaped(comparison):
    html = report.render(comparison, [Vote("subject", "base", SCRIPT)])
    assert "<script" not in html and "alert('" not in html
    headings, note, titles, votes = 2, 1, 4 * 2 + 2 * 2, 1  # alt and title of an image hold prompt and label
    assert html.count("&lt;script&gt;alert(&#39;&#34;&amp;&#39;)&lt;/script&gt;") == headings + note + titles + votes


def test_axes_and_labels_of_plots_are_escaped():
    svg = scatter([Point(SCRIPT, 1, 1), Point("b", 2, 2)], SCRIPT, SCRIPT)
    assert "<script" not in svg and svg.count("&lt;script&gt;") == 3 + 3
