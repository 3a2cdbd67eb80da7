"""Blind votes are fair and counted honestly; the report is one file with everything in it."""

import re
from itertools import combinations

import pytest
from PIL import Image

import hra_diffusion as hra
from hra_diffusion.comparison import report, votes
from hra_diffusion.comparison.storage import load_comparison
from hra_diffusion.comparison.votes import Vote


def test_every_pair_is_asked_once_a_question_and_sides_are_mixed():
    ballots = votes.ballots(rows=4, columns=(0, 1, 2), width=3, seed=0)
    asked = [(b.question, frozenset((b.left, b.right))) for b in ballots]
    wanted = [(q, frozenset((r * 3 + a, r * 3 + b))) for q in votes.QUESTIONS for r in range(4)
              for a, b in combinations(range(3), 2)]  # fmt: skip
    assert len(asked) == len(set(asked)) and set(asked) == set(wanted)
    first_left = sum(b.left < b.right for b in ballots)
    assert 0 < first_left < len(ballots)
    assert ballots == votes.ballots(4, (0, 1, 2), 3, seed=0), "a reload asks the same"


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [(0, 0, 0.0, 1.0), (8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilsons_interval(wins, n, low, high):
    assert votes.wilson(wins, n) == pytest.approx((low, high), abs=1e-3)


def test_votes_are_kept_and_counted(tmp_path):
    votes.record(Vote("subject", "HRA", "LoRA"), tmp_path)
    votes.record(Vote("subject", "HRA", "base"), tmp_path)
    votes.record(Vote("subject", "HRA", "LoRA", tie=True), tmp_path)
    votes.record(Vote("prompt", "base", "HRA"), tmp_path)
    standings = votes.tally(votes.recorded(tmp_path), "subject")
    assert [(s.variant, s.wins, s.votes) for s in standings] == [("HRA", 2.5, 3), ("LoRA", 0.5, 2), ("base", 0, 1)]
    assert votes.recorded(tmp_path / "nowhere") == []


def test_a_ballot_counts_once_and_voting_goes_on_where_it_stopped(tmp_path):
    assert votes.upcoming(tmp_path) == 0
    votes.record(Vote("subject", "HRA", "LoRA", at=0), tmp_path)
    votes.record(Vote("prompt", "", "", at=1), tmp_path)
    votes.record(Vote("subject", "LoRA", "HRA", at=0), tmp_path)
    assert votes.upcoming(tmp_path) == 2, "what was skipped is not asked again"
    assert [vote.winner for vote in votes.recorded(tmp_path)] == ["HRA"]


def test_the_report_needs_nothing_else(pipe, tmp_path):
    columns = [hra.Variant("base", {}, "dog"), hra.Variant("<b>evil</b>", {}, "dog")]
    done = hra.compare(pipe, columns, ["a {subject} & co"], [1, 2], hra.Settings(steps=2))
    text = report.write(done, tmp_path / "report.html", [Vote("subject", "base", "<b>evil</b>")]).read_text()
    assert text.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', text) and "http" not in text.replace("charset", "")
    assert "<b>evil</b>" not in text and "&lt;b&gt;evil" in text and "Blind votes" in text


def test_a_saved_comparison_comes_back(pipe, tmp_path):
    photos = [Image.new("RGB", (900, 600), color) for color in ("red", "green")]
    columns, few = [hra.Variant("base", {}, "dog")], hra.Settings(steps=2)
    done = hra.compare(pipe, columns, ["a {subject}"], [1, 2], few, photos)
    hra.save_comparison(done, tmp_path)
    again = load_comparison(tmp_path)
    assert [(photo.size, photo.getpixel((0, 0))) for photo in again.photos] == [
        ((512, 341), (255, 0, 0)), ((512, 341), (0, 128, 0)),
    ], "what was learned from may be gone by then"  # fmt: skip
    assert again.variants == done.variants and again.prompts == done.prompts and again.seeds == done.seeds
    assert [cell.request for cell in again.samples] == [cell.request for cell in done.samples]
    assert again.samples[1].image.tobytes() == done.samples[1].image.tobytes()
    with pytest.raises(ValueError, match="no whole comparison"):
        load_comparison(tmp_path / "nowhere")
