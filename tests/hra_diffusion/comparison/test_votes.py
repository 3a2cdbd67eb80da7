"""Blind votes: fair ballots, honest counts."""

from itertools import combinations

import pytest

from hra_diffusion.comparison import votes
from hra_diffusion.comparison.votes import Vote
from hra_diffusion.errors import Note


def test_every_pair_has_one_ballot_per_question_and_sides_are_mixed():
    ballots = votes.ballots(rows=4, variants=(0, 1, 2), width=3, seed=0)
    asked = [(b.question, frozenset((b.left, b.right))) for b in ballots]
    expected = [(q, frozenset((r * 3 + a, r * 3 + b))) for q in votes.QUESTIONS for r in range(4)
                for a, b in combinations(range(3), 2)]  # fmt: skip
    assert len(asked) == len(set(asked)) and set(asked) == set(expected)
    first_left = sum(b.left < b.right for b in ballots)
    assert 0 < first_left < len(ballots)
    assert ballots == votes.ballots(4, (0, 1, 2), 3, seed=0), "a reload of the page asks the same"


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [(0, 0, 0.0, 1.0), (8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_interval(wins, n, low, high):
    assert votes.wilson(wins, n) == pytest.approx((low, high), abs=1e-3)


def test_votes_are_stored_and_counted(tmp_path):
    votes.record(Vote("subject", "HRA", "LoRA"), tmp_path)
    votes.record(Vote("subject", "HRA", "base"), tmp_path)
    votes.record(Vote("subject", "HRA", "LoRA", tie=True), tmp_path)
    votes.record(Vote("prompt", "base", "HRA"), tmp_path)
    standings = votes.tally(votes.recorded(tmp_path), "subject")
    assert [(s.variant, s.wins, s.votes) for s in standings] == [("HRA", 2.5, 3), ("LoRA", 0.5, 2), ("base", 0, 1)]
    assert votes.recorded(tmp_path / "nowhere") == []


def test_a_ballot_counts_once_and_voting_resumes_after_the_last(tmp_path):
    assert votes.upcoming(tmp_path) == 0
    votes.record(Vote("subject", "HRA", "LoRA", at=0), tmp_path)
    votes.record(Vote("prompt", "", "", at=1), tmp_path)
    votes.record(Vote("subject", "LoRA", "HRA", at=0), tmp_path)
    assert votes.upcoming(tmp_path) == 2, "a skipped ballot is not asked again"
    assert [vote.winner for vote in votes.recorded(tmp_path)] == ["HRA"]


def test_invalid_lines_of_the_votes_are_skipped(tmp_path):
    votes.record(Vote("subject", "HRA", "LoRA", at=0), tmp_path)
    with (tmp_path / "votes.jsonl").open("ab") as file:
        file.write(b'{"question": "prom')
    with pytest.warns(Note, match="damaged line"):
        assert votes.upcoming(tmp_path) == 1
    votes.record(Vote("prompt", "HRA", "LoRA", at=1), tmp_path)
    odd = b'\0\0\n[1]\n{}\n{"question": "subject", "winner": ["HRA"], "loser": 3}\n'
    (tmp_path / "votes.jsonl").write_bytes(odd + (tmp_path / "votes.jsonl").read_bytes())
    assert [vote.at for vote in votes.recorded(tmp_path)] == [0, 1]
