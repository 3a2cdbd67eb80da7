"""The Compare tab: adapters and the base side by side from the same noise; blind votes; downloads."""

import functools
import itertools
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr
from PIL import Image

from app.inference_session import Cancelled, Preview
from app.web.context import (
    DEVICE_QUEUE,
    HIDDEN,
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
from hra_diffusion import library
from hra_diffusion.adapters.adapter_file import AdapterInfo, read_info
from hra_diffusion.comparison import report, votes
from hra_diffusion.comparison.compare import (
    BASE,
    PHOTO_SIDE,
    Comparison,
    Variant,
    compare,
    drift_pairs,
    load_comparison,
    save_comparison,
    score_summary,
)
from hra_diffusion.comparison.votes import QUESTIONS, Vote
from hra_diffusion.errors import UserError
from hra_diffusion.files import atomic_path, next_numbered_folder
from hra_diffusion.generation.sampling import OnStep, Settings, with_subject
from training.runs.run_folder import photos_of

MOST_CELLS, REVEALED_AFTER = 120, 10
UNPLOTTED = "For this it takes two columns, the photos they learned from, and a CLIP model."
PROMPTS = "a photo of a {subject} in the snow\na photo of a {subject} on the beach"


@dataclass
class Compare:
    """The tab's components."""

    adapters: gr.Dropdown
    base: gr.Checkbox
    prompts: gr.Textbox
    seed: gr.Number
    seeds: gr.Slider
    strength: gr.Slider
    steps: gr.Slider
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    grid: gr.HTML
    tools: gr.Column
    left: gr.Dropdown
    right: gr.Dropdown
    row: gr.Dropdown
    overlay: gr.ImageSlider
    ballot: gr.HTML
    standings: gr.HTML
    plots: gr.HTML
    drift: gr.Checkbox
    files: gr.HTML

    @property
    def shown(self) -> list[Any]:
        """What a comparison fills in."""
        return [self.grid, self.tools, self.row, self.left, self.right, self.overlay, self.plots, self.files,
                self.ballot, self.standings]  # fmt: skip

    @property
    def inputs(self) -> list[Any]:
        """All that decides a comparison."""
        return [self.adapters, self.base, self.prompts, self.seed, self.seeds, self.strength, self.steps, self.drift]


@dataclass(frozen=True)
class Plan:
    """What will be compared: a column for each adapter, and the base."""

    files: tuple[Path, ...]
    names: tuple[str, ...]
    infos: tuple[AdapterInfo, ...]
    base: bool
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    strength: float
    settings: Settings
    drift: bool = False

    @property
    def width(self) -> int:
        return len(self.files) + self.base

    @functools.cached_property
    def photos(self) -> list[Image.Image]:
        """The photos that the first adapter learned from."""
        return photos_of(self.files[0], PHOTO_SIDE)

    @property
    def labels(self) -> list[str]:
        """Names of the columns, in order; equal ones are told apart by a number."""
        names = [BASE] * self.base
        for name in self.names:
            numbered = (f"{name} {number}" for number in itertools.count(2))
            names.append(next(new for new in itertools.chain([name], numbered) if new not in names))
        return names

    @property
    def pictures(self) -> int:
        """How many there are to draw: the cells, and what drift is measured by."""
        columns = self.columns([{str(number): 1.0} for number in range(len(self.files))])
        pairs = drift_pairs(columns, self.prompts, self.seeds[0]) if self.drift else {}
        return self.width * len(self.prompts) * len(self.seeds) + len({r for pair in pairs.values() for r in pair})

    def columns(self, mixes: Sequence[Mapping[str, float]]) -> list[Variant]:
        """The contestants, ``mixes`` being the adapters' names on the pipeline with their strengths."""
        nouns = [self.infos[0].class_noun] if self.infos else [""]
        subjects = nouns * self.base + [info.subject for info in self.infos]
        nouns = nouns * self.base + [info.class_noun for info in self.infos]
        taken = [{}] * self.base + [library.training_costs(*own) for own in zip(self.files, self.infos, strict=True)]
        mixes = [{}] * self.base + list(mixes)
        return [Variant(*c) for c in zip(self.labels, mixes, subjects, nouns, taken, strict=True)]


def build(house: AppContext) -> Compare:
    """Lay the tab out."""
    parts: dict[str, Any] = {}
    with gr.Row(equal_height=True):
        with gr.Column(scale=5, min_width=300):
            parts["adapters"] = gr.Dropdown(house.adapter_choices(), multiselect=True, label="Adapters",
                                            info="A column each.", elem_id="compare-adapters")  # fmt: skip
            parts["base"] = gr.Checkbox(True, label="The base model too, as the first column")
        with gr.Column(scale=5, min_width=300):
            parts["prompts"] = gr.Textbox(PROMPTS, lines=3, label="Prompts, a line each", max_length=2000,
                                          info="{subject} stands for each adapter’s own.")  # fmt: skip
    with gr.Row():
        parts["seeds"] = gr.Slider(1, 6, 2, step=1, label="Seeds a prompt", min_width=140)
        parts["seed"] = gr.Number(0, precision=0, minimum=0, label="First seed", min_width=100)
        parts["strength"] = gr.Slider(0, 1.5, 1, step=0.05, label="Strength of all", min_width=140)
        parts["steps"] = gr.Slider(1, 100, 25, step=1, label="Steps", min_width=140)
    parts["drift"] = gr.Checkbox(
        False,
        label="Measure, too, what else has changed",
        info="One more picture a prompt and adapter, of its class without the trigger.",
    )
    with gr.Row():
        parts["run"] = gr.Button("Compare", variant="primary", size="lg", scale=3, elem_id="compare-button")
        parts["stop"] = gr.Button("Stop", size="lg", scale=1, min_width=70)
    parts["status"] = gr.HTML()
    parts["grid"] = gr.HTML(elem_id="grid")
    parts |= _tools()
    return Compare(**parts)


def _tools() -> dict[str, Any]:
    with gr.Column(visible=False) as tools:
        with gr.Accordion("Two on top of each other", open=False):
            with gr.Row():
                row = gr.Dropdown([], label="Row", min_width=140)
                left = gr.Dropdown([], label="Left", min_width=120)
                right = gr.Dropdown([], label="Right", min_width=120)
            overlay = gr.ImageSlider(
                label="Overlay", show_label=False, height=420, interactive=False, elem_id="overlay"
            )
        with gr.Accordion("Blind vote", open=False):
            ballot, standings = gr.HTML(js_on_load=CLICKS, elem_id="ballot"), gr.HTML()
        with gr.Accordion("Likeness against its cost", open=False, elem_id="plots"):
            plots = gr.HTML()
        with gr.Accordion("Download", open=False):
            files = gr.HTML()
    return {"plots": plots, "tools": tools, "row": row, "left": left, "right": right, "overlay": overlay,
            "ballot": ballot, "standings": standings, "files": files}  # fmt: skip


def make_plan(house: AppContext, values: Sequence[Any]) -> Plan:
    """The tab's values, checked. Raises UserError saying what is missing or too much."""
    keys, base, text, seed, count, strength, steps, drift = values
    files = tuple(house.file(key) for key in keys or [])
    prompts = tuple(line.strip() for line in (text or "").splitlines() if line.strip())
    if not files:
        raise UserError("Choose at least one adapter; teach one first if there is none.")
    if not prompts:
        raise UserError("Write at least one prompt.")
    infos = tuple(read_info(file) for file in files)
    prompts = tuple(for_every_subject(prompt, infos[0]) for prompt in prompts)
    seeds = tuple(range(int(seed or 0), int(seed or 0) + int(count)))
    labels = tuple(library.display_name(file) for file in files)
    plan = Plan(files, labels, infos, bool(base), prompts, seeds, strength, Settings(steps=int(steps)), drift)
    if (cells := plan.width * len(prompts) * len(seeds)) > MOST_CELLS:
        raise UserError(
            f"that makes {cells} pictures; {MOST_CELLS} are the most. Take fewer prompts, seeds or adapters."
        )
    return plan


def for_every_subject(prompt: str, info: AdapterInfo) -> str:
    """The prompt with {subject} where it names this adapter's own ("sks dog"), else its class, else before it all."""
    if info.subject:
        prompt = re.sub(rf"(?<!\w){re.escape(info.subject)}(?!\w)", "{subject}", prompt, flags=re.IGNORECASE)
    return with_subject(prompt, "{subject}", info.class_noun)


def draw(house: AppContext, plan: Plan, stop: threading.Event) -> Iterator[Preview | Comparison]:
    """Draw the comparison: previews of its cells, then itself."""
    studio = house.studio

    def work(on_step: OnStep) -> Comparison:
        infos = studio.load_adapters(list(plan.files))
        columns = plan.columns([{info.name: plan.strength} for info in infos])
        return compare(
            studio.pipe, columns, plan.prompts, plan.seeds, plan.settings, plan.photos, on_step=on_step,
            clip=studio.clip, drift=plan.drift,
        )  # fmt: skip

    for news in studio.watch(work, plan.pictures, stop):
        yield news if isinstance(news, Preview) else news.value


def show_grid(
    labels: Sequence[str],
    prompts: Sequence[str],
    seeds: Sequence[int],
    cells: Mapping[int, Image.Image | Path],
    photos: Sequence[Image.Image] = (),
    scores: Mapping[int, str] = MappingProxyType({}),
    last: str = "",
) -> str:
    """The table of pictures, their scores under them, and a last row; cells that are not there yet are blank."""
    heads = "".join(f"<th>{escape(label)}</th>" for label in labels)
    rows, width = [], len(labels)
    photos = photos[: len(prompts) * len(seeds)]
    references = [f"<td>{_cell(photo, 'photo')}</td>" for photo in photos]
    for number, (prompt, seed) in enumerate(itertools.product(prompts, seeds)):
        if number % len(seeds) == 0:
            words = prompt.replace("{subject}", "…")
            rows.append(f'<tr><th class="prompt soft" colspan="{width + bool(photos)}">{escape(words)}</th></tr>')
        reference = references[number % len(photos)] if photos else ""
        drawn = "".join(
            f"<td>{_cell(cells.get(number * width + i), f'{label}: {prompt}, seed {seed}')}"
            f'<span class="figures soft small">{scores.get(number * width + i, "")}</span></td>'
            for i, label in enumerate(labels)
        )
        rows.append(f"<tr>{reference}{drawn}</tr>")
    first = "<th>photos</th>" if photos else ""
    return (
        f'<div class="scroll"><table class="grid" data-group><tr>{first}{heads}</tr>{"".join(rows)}{last}</table></div>'
    )


def _cell(source: Image.Image | Path | None, about: str) -> str:
    return '<div class="blank"></div>' if source is None else f'<div class="cell">{picture(source, about)}</div>'


def show_kept(folder: Path, comparison: Comparison) -> str:
    """The grid of a comparison that is saved."""
    files = dict(enumerate(sorted((folder / "pictures").glob("*.png"))))
    labels = [column.label for column in comparison.columns]
    scores = {number: _apart(score_summary(cell.score)) for number, cell in enumerate(comparison.cells) if cell.score}
    last = report.means(comparison, titled=bool(comparison.photos))
    return note(comparison.notes, "plain") + show_grid(
        labels, comparison.prompts, comparison.seeds, files, comparison.photos, scores, last
    )


def _apart(figures: str) -> str:
    """Each figure whole, where a column is narrow."""
    return "&ensp;".join(f"<span>{figure}</span>" for figure in figures.split(" · "))


def keep(comparison: Comparison, folder: Path) -> None:
    """Save the comparison with its report and an archive of its pictures."""
    save_comparison(comparison, folder)
    report.write(comparison, folder / "report.html")
    with atomic_path(folder / "pictures.zip") as temporary:
        shutil.make_archive(str(temporary.with_suffix("")), "zip", folder / "pictures")


def show_downloads(folder: Path) -> str:
    """Links to what a comparison left."""
    texts = {"grid.png": "The grid as a picture", "report.html": "A report in one file", "pictures.zip": "All pictures"}
    links = "".join(
        f'<a class="act" href="{escape(served(folder / file))}" download="{file}">{text}</a>'
        for file, text in texts.items()
    )
    return f'<div style="display:flex;gap:8px;flex-wrap:wrap">{links}</div>'


def newest(folder: Path) -> Path | None:
    """This visitor's latest comparison."""
    return max((path.parent for path in folder.glob("compare/[0-9]*/results.json")), default=None)


def _ballots(comparison: Comparison) -> list[votes.Ballot]:
    width, cells = len(comparison.columns), len(comparison.cells)
    return votes.ballots(cells // width, range(width), width, seed=cells)


def show_ballot(folder: Path, comparison: Comparison) -> tuple[str, str]:
    """The next question with its two pictures and, after ten votes, how the methods stand."""
    width, every = len(comparison.columns), _ballots(comparison)
    cast, done = votes.recorded(folder), votes.upcoming(folder)
    if width < 2:
        return note("A vote needs two columns at least.", "plain"), ""
    if done >= len(every):
        return note("All pairs have been asked. Thank you!", "plain"), show_standings(cast, True)
    ballot = every[done]
    sides = "".join(
        f"<div>{picture(comparison.cells[cell].image, side, zoom=False)}"
        f"{button(f'{side} one', 'vote', cell=cell, at=done, of=folder.name)}</div>"
        for side, cell in (("Left", ballot.left), ("Right", ballot.right))
    )
    asked = _about(comparison, ballot)
    more = " ".join(
        button(text, do, at=done, of=folder.name) for text, do in (("No difference", "tie"), ("Skip", "skip"))
    )
    html = (
        f'<p><b>{QUESTIONS[ballot.question]}</b></p>{asked}<div class="ballot">{sides}</div>'
        f'<p style="text-align:center">{more}</p>'
    )
    return html, show_standings(cast, len(cast) >= REVEALED_AFTER)


def _about(comparison: Comparison, ballot: votes.Ballot) -> str:
    if ballot.question == "prompt" or not comparison.photos:
        prompt = comparison.prompts[ballot.left // len(comparison.columns) // len(comparison.seeds)]
        words = prompt.replace("{subject}", comparison.columns[-1].subject)  # the base's own would tell it apart
        return f'<p class="soft">“{escape(words)}”</p>'
    photos = "".join(f'<div class="cell" style="width:84px">{picture(p, "photo")}</div>' for p in comparison.photos[:4])
    return f'<div style="display:flex;gap:8px;justify-content:center" data-group>{photos}</div>'


def show_standings(cast: Sequence[Vote], revealed: bool) -> str:
    """Wins of each column with Wilson's interval; before they are revealed, only how many votes there are."""
    if not revealed:
        return f'<p class="soft">{len(cast)} votes so far; names are shown after {REVEALED_AFTER}.</p>' if cast else ""
    tables = []
    for question, words in QUESTIONS.items():
        lines = "".join(
            f"<tr><td>{escape(s.column)}</td><td>{s.wins:g} of {s.votes}</td><td>{s.low:.0%} – {s.high:.0%}</td></tr>"
            for s in votes.tally(cast, question)
        )
        head = "<tr><th></th><th>won</th><th>95 % interval</th></tr>"
        tables.append(
            f'<p style="margin-top:12px"><b>{words}</b></p><table class="plain">{head}{lines}</table>' if lines else ""
        )
    return "".join(tables)


def count_vote(folder: Path, comparison: Comparison, at: int, do: str, cell: int | None) -> None:
    """Keep the answer to ballot number ``at``. Raises UserError for a picture that was not asked about."""
    ballot = _ballots(comparison)[at]
    if do == "skip":
        votes.record(Vote(ballot.question, "", "", at=at), folder)
        return
    winner = ballot.left if do == "tie" else cell
    if winner not in (ballot.left, ballot.right):
        raise UserError("this question is over; answer the one that is shown")
    loser = ballot.right if winner == ballot.left else ballot.left
    names = [comparison.cells[number].column for number in (winner, loser)]
    votes.record(Vote(ballot.question, *names, tie=do == "tie", at=at), folder)
    report.write(comparison, folder / "report.html", votes.recorded(folder))


class Events:
    """What the tab's buttons do."""

    def __init__(self, house: AppContext, parts: Compare):
        self.house, self.parts = house, parts
        self.stops = CancellationRegistry()

    def show(self, folder: Path, comparison: Comparison) -> tuple[Any, ...]:
        labels = [column.label for column in comparison.columns]
        rows = [
            f"{p.replace('{subject}', '…')} · seed {s}"
            for p, s in itertools.product(comparison.prompts, comparison.seeds)
        ]
        pair = (labels[0], labels[-1])
        return (
            show_kept(folder, comparison), gr.update(visible=True),
            gr.update(choices=list(zip(rows, range(len(rows)), strict=True)), value=0),
            *(gr.update(choices=labels, value=label) for label in pair),
            overlaid(folder, comparison, 0, *pair), report.plots(comparison) or note(UNPLOTTED, "plain"),
            show_downloads(folder), *show_ballot(folder, comparison),
        )  # fmt: skip

    @user_errors
    def ready(self, request: gr.Request, *values: Any) -> str:
        make_plan(self.house, values)  # what is wrong is said at once
        self.stops.ready(request)
        return f"<p>{waiting(self.house.studio)}</p>"

    @user_errors_each
    def run(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        with self.stops.drawing(request) as stop:
            plan, rest = make_plan(self.house, values), [gr.skip()] * (len(self.parts.shown) - 1)
            start, cells = time.monotonic(), len(plan.prompts) * len(plan.seeds) * plan.width
            blank = show_grid(plan.labels, plan.prompts, plan.seeds, {}, plan.photos)
            yield f"<p>{cells} pictures to draw …</p>{bar(0, 'drawing')}", blank, gr.update(visible=False), *rest[1:]
            try:
                for news in draw(self.house, plan, stop):
                    if isinstance(news, Preview):
                        grid = show_grid(plan.labels, plan.prompts, plan.seeds, news.pictures, plan.photos)
                        left = (time.monotonic() - start) * (1 - news.done) / max(news.done, 0.01)
                        yield f"<p>drawing … about {left:.0f} s left</p>{bar(news.done, 'drawing')}", grid, *rest
                        continue
                    folder = next_numbered_folder(self.house.own(request) / "compare")
                    keep(news, folder)
                    text = f"{cells} pictures in {news.seconds:.0f} s, from the same noise along each row."
                    unscored = note(self.house.studio.unscored, "plain")
                    yield f'<p class="soft">{text}</p>{unscored}', *self.show(folder, news)
            except UserError as error:
                said = note("Stopped.", "plain") if isinstance(error, Cancelled) else note(str(error), "bad")
                yield said, *self.bring_back(request)

    def halt(self, request: gr.Request) -> Any:
        return note("Stopping …", "plain") if self.stops.stop(request) else gr.skip()

    def current(self, request: gr.Request) -> tuple[Path, Comparison]:
        if (folder := newest(self.house.own(request))) is None:
            raise UserError("there is no comparison yet")
        return folder, load_comparison(folder)

    def bring_back(self, request: gr.Request) -> tuple[Any, ...]:
        if (folder := newest(self.house.own(request))) is None:
            what = "Choose adapters above; every row is drawn from the same noise, beside your photos."
            return empty("Nothing compared yet", what, "demo"), *[gr.skip()] * (len(self.parts.shown) - 1)
        try:
            return self.show(folder, load_comparison(folder))
        except UserError as error:
            return note(str(error), "bad"), *[gr.skip()] * (len(self.parts.shown) - 1)

    @user_errors
    def overlay(self, row: int, left: str, right: str, request: gr.Request) -> Any:
        return overlaid(*self.current(request), row, left, right)

    @user_errors
    def vote(self, event: gr.EventData, request: gr.Request) -> tuple[str, str]:
        folder, comparison = self.current(request)
        said = clicked(event)
        if said["of"] != folder.name:
            raise UserError("another comparison was made since, perhaps in another tab; reload the page to vote on it")
        count_vote(folder, comparison, int(said["at"]), said["do"], int(said["cell"]) if "cell" in said else None)
        return show_ballot(folder, comparison)


def connect(house: AppContext, page: gr.Blocks, tab: gr.Tab, parts: Compare) -> None:
    """Wire the tab."""
    events, shown = Events(house, parts), parts.shown
    drawing: dict[str, Any] = {"inputs": parts.inputs, "outputs": [parts.status, *shown], "show_progress": "hidden"}
    device = {"concurrency_id": DEVICE_QUEUE, "concurrency_limit": 1}
    parts.run.click(events.ready, parts.inputs, parts.status, **HIDDEN).success(
        events.run, **drawing, **device, trigger_mode="multiple", api_name="compare"
    )
    parts.stop.click(events.halt, None, parts.status, **QUIET)
    page.load(events.bring_back, None, shown, **QUIET)
    gr.on([page.load, tab.select], lambda: gr.update(choices=house.adapter_choices()), None, parts.adapters, **QUIET)
    gr.on([parts.row.input, parts.left.input, parts.right.input], events.overlay, [parts.row, parts.left, parts.right],
          parts.overlay, **HIDDEN)  # fmt: skip
    parts.ballot.click(events.vote, None, [parts.ballot, parts.standings], **HIDDEN)


def overlaid(folder: Path, comparison: Comparison, row: int, left: str, right: str) -> tuple[str, str]:
    """Two pictures of a row, for the overlay."""
    labels, files = [c.label for c in comparison.columns], sorted((folder / "pictures").glob("*.png"))
    first, second = (str(files[int(row) * len(labels) + labels.index(label)]) for label in (left, right))
    return first, second
