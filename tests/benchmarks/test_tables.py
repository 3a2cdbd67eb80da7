"""Tests of docs/benchmarks.md."""

import re

from conftest import ROOT

from benchmarks import claims, options, tables


def slugify(heading):
    """Return the anchor of a heading, as Python-Markdown's toc extension makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def test_every_benchmark_has_a_claim():
    files = {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert files == {claim.name for claim in claims.CLAIMS}


def test_the_page_is_up_to_date_and_the_readme_links_to_it():
    assert tables.page() == tables.PAGE.read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "docs/benchmarks.md" in readme and "made by python -m benchmarks.tables" not in readme


def test_the_page_has_the_judges_tables():
    page = tables.page()
    for name in ("subjects.md", "sweep.md"):
        assert (options.RESULTS / name).read_text(encoding="utf-8").strip() in page


def test_links_of_the_summary_lead_to_headings():
    page = tables.page()
    anchors = {slugify(line.removeprefix("## ")) for line in page.splitlines() if line.startswith("## ")}
    links = re.findall(r"\]\(#([^)]+)\)", page)
    assert len(links) == len(claims.CLAIMS) and set(links) <= anchors


def test_without_results_nothing_is_claimed(tmp_path):
    page = tables.page(tmp_path)
    assert page.count(f"| {tables.NOT_MEASURED} | {tables.NOT_MEASURED} |") == len(claims.CLAIMS)
    assert page.count("Not measured: `python -m benchmarks.") == len(claims.CLAIMS)
    assert page.count("\n\nNot measured.") == 6, "the judge's tables"
    assert "| ✓ |" not in page and "| ✗ |" not in page
