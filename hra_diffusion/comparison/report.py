"""A comparison as one HTML file: pictures, settings and votes inside, nothing to load from elsewhere."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from hra_diffusion.comparison.compare import Comparison, Sample
from hra_diffusion.comparison.plot import Point, scatter
from hra_diffusion.comparison.statistics import FIGURES, Statistic, clear_best, score_statistics, score_summary
from hra_diffusion.comparison.votes import QUESTIONS, Vote, tally
from hra_diffusion.files import write_text

STYLE = """
:root { color-scheme: light dark; --line: #8883; --soft: light-dark(#666, #aaa); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
table { border-collapse: separate; border-spacing: 6px; }
th { font-weight: 600; text-align: left; } td { vertical-align: top; }
img { display: block; border-radius: 6px; width: 100%; min-width: 96px; max-width: 256px; image-rendering: auto; }
.prompt { padding-top: 1.2rem; } .soft { color: var(--soft); font-size: .85rem; } .photos img { max-width: 128px; }
.scroll { overflow-x: auto; } .plots { display: flex; flex-wrap: wrap; gap: 12px; } .plots svg { flex: 1 1 320px; }
"""


def data_uri(image: Image.Image, kind: str = "png", side: int | None = None) -> str:
    """A picture as text that a page can hold; no larger than ``side`` where given."""
    if side and max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.convert("RGB").save(buffer, kind, **({"quality": 85} if kind != "png" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write(comparison: Comparison, path: Path, votes: Sequence[Vote] = ()) -> Path:
    """Write the report; returns its path."""
    write_text(path, render(comparison, votes))
    return path


def render(comparison: Comparison, votes: Sequence[Vote] = ()) -> str:
    """The report's HTML."""
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Comparison</title><style>{STYLE}</style></head><body>
<h1>Comparison</h1><p>{escape(_facts(comparison))}</p>
{"".join(f"<p>{escape(note)}</p>" for note in comparison.notes)}
{_photos(comparison)}
<div class="scroll"><table><thead><tr><th class="soft">seed</th>{_heads(comparison)}</tr></thead>
<tbody>{_rows(comparison)}</tbody></table></div>
{_explained(comparison)}{plots(comparison)}{_votes(votes)}
</body></html>"""


def _facts(comparison: Comparison) -> str:
    s = comparison.settings
    return (
        f"{len(comparison.samples)} pictures from the same noise along each row; {s.steps} steps of {s.scheduler}, "
        f"guidance scale {s.guidance_scale:g}, {s.width}×{s.height} pixels, drawn in {comparison.seconds:.1f} s."
    )


def _explained(comparison: Comparison) -> str:
    if not any(cell.score for cell in comparison.samples):
        return ""
    measured = {name for number in range(len(comparison.variants)) for name in score_statistics(comparison, number)}
    figures = "; ".join(f"{name}: {meaning}" for name, meaning in FIGURES.items() if name in measured)
    return (
        f'<p class="soft">{figures}. All by a CLIP model: proxies. ✓ marks what is clearly higher than every other '
        "adapter's: by over twice the standard error of the differences between pictures of the same noise.</p>"
    )


PLOTS = {
    "prompt": "likeness to the prompt",
    "seconds": "seconds of training",
    "memory": "GiB held in training",
    "megabytes": "megabytes of the file",
}
"""What likeness to the photos is plotted against."""


def plots(comparison: Comparison) -> str:
    """Likeness to the photos against what it is bought with: prompts, time, size. Empty where nothing was measured."""
    drawn = [_plot(comparison, against, name) for against, name in PLOTS.items()]
    if not any(drawn):
        return ""
    text = "Full points: nothing here is better in both. Bars: standard error over the pictures."
    return f'<div class="plots">{"".join(drawn)}</div><p class="soft">{text}</p>'


def _plot(comparison: Comparison, against: str, name: str) -> str:
    rows = len(comparison.prompts) * len(comparison.seeds)
    points = []
    for number, column in enumerate(comparison.variants):
        figures = score_statistics(comparison, number)
        x = figures.get(against, column.costs.get(against))
        if "subject" in figures and x is not None:
            (x, x_error), (y, y_error) = (_estimate(value, rows) for value in (x, figures["subject"]))
            points.append(Point(column.label, x, y, x_error, y_error))
    return scatter(points, name, "likeness to the photos", less=against != "prompt") if len(points) > 1 else ""


def _estimate(value: Statistic | float, count: int) -> tuple[float, float]:
    """A mean with its standard error; a plain number has none."""
    return (value.mean, value.deviation / count**0.5) if isinstance(value, Statistic) else (value, 0.0)


def _photos(comparison: Comparison) -> str:
    if not comparison.photos:
        return ""
    cells = "".join(f'<td><img alt="photo" src="{data_uri(photo)}"></td>' for photo in comparison.photos)
    return f'<h2>Photos</h2><div class="scroll photos"><table><tr>{cells}</tr></table></div><h2>Pictures</h2>'


def _heads(comparison: Comparison) -> str:
    return "".join(f"<th>{escape(column.label)}</th>" for column in comparison.variants)


def _rows(comparison: Comparison) -> str:
    rows = []
    for p, prompt in enumerate(comparison.prompts):
        rows.append(f'<tr><th class="prompt" colspan="{len(comparison.variants) + 1}">{escape(prompt)}</th></tr>')
        for s, seed in enumerate(comparison.seeds):
            cells = "".join(_cell(cell) for cell in comparison.row(p, s))
            rows.append(f'<tr><td class="soft">{seed}</td>{cells}</tr>')
    return "".join(rows) + means(comparison)


def means(comparison: Comparison, titled: bool = True) -> str:
    """A table row with every column's figures, the clearly best in bold; ``titled``: a cell that says so comes first.

    Empty without scores.
    """
    spreads = [score_statistics(comparison, number) for number in range(len(comparison.variants))]
    if not any(spreads):
        return ""
    best = {name: clear_best(comparison, name) for name in ("subject", "prompt")}  # of the others more is not better
    cells = []
    for number, figures in enumerate(spreads):
        lines = [
            f"<b>{name} {value} ✓</b>" if best.get(name) == number else f"{name} {value}"
            for name, value in figures.items()
        ]
        cells.append(f"<td>{'<br>'.join(lines)}</td>")
    title = '<td class="soft">mean ± deviation</td>' if titled else ""
    return f'<tr class="means">{title}{"".join(cells)}</tr>'


def _cell(cell: Sample) -> str:
    about = f"{cell.variant}: {cell.request.prompt}"
    score = f'<span class="soft">{score_summary(cell.score)}</span>' if cell.score else ""
    return f'<td><img alt="{escape(about)}" title="{escape(about)}" src="{data_uri(cell.image)}">{score}</td>'


def _votes(votes: Sequence[Vote]) -> str:
    if not votes:
        return ""
    parts = ["<h2>Blind votes</h2>"]
    for question, words in QUESTIONS.items():
        lines = "".join(
            f"<tr><td>{escape(s.variant)}</td><td>{s.wins:g} of {s.votes}</td><td>{s.low:.0%} to {s.high:.0%}</td></tr>"
            for s in tally(votes, question)
        )
        parts.append(f"<h3>{words}</h3><table><tr><th></th><th>won</th><th>95 % interval</th></tr>{lines}</table>")
    return "".join(parts)
