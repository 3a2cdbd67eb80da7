"""Blind votes between the columns of a comparison: two pictures without names, which is better at what was asked.

Votes are kept as lines of JSON beside the comparison; nothing here knows of a page.
"""

import contextlib
import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from hra_diffusion.files import append_line, make_folder, read_json_lines

Question = Literal["subject", "prompt"]
QUESTIONS: dict[Question, str] = {
    "subject": "Which one is more like the subject in the photos?",
    "prompt": "Which one follows the prompt better?",
}


@dataclass(frozen=True)
class Ballot:
    """One question about two pictures, given by their cells' numbers, in the order they are shown."""

    question: Question
    left: int
    right: int


@dataclass(frozen=True)
class Vote:
    """An answer: the winner's and the loser's column; a tie where none was better. Without a winner it was skipped.

    ``at``: the number of the ballot that was answered.
    """

    question: Question
    winner: str
    loser: str
    tie: bool = False
    at: int | None = None


@dataclass(frozen=True)
class Standing:
    """A column's wins in votes on one question, ties counting half, with Wilson's interval of the share."""

    variant: str
    wins: float
    votes: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """Wins as a part of all votes."""
        return self.wins / self.votes if self.votes else 0.0


def ballots(rows: int, columns: Sequence[int], width: int, seed: int) -> list[Ballot]:
    """Every pair of the columns in every row, each question once, shuffled; sides are drawn by lot.

    ``columns``: indices of those that take part; ``width``: how many columns a row has.
    """
    lot, found = random.Random(seed), []
    for row in range(rows):
        for pair in combinations(columns, 2):
            for question in QUESTIONS:
                left, right = lot.sample(pair, 2)
                found.append(Ballot(question, row * width + left, row * width + right))
    lot.shuffle(found)
    return found


def wilson(wins: float, votes: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (1927): honest for few votes, and never outside 0 to 1."""
    if not votes:
        return 0.0, 1.0
    share, spread = wins / votes, z * z / votes
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / votes + spread / (4 * votes))
    return max(0.0, centre - half), min(1.0, centre + half)


def tally(votes: Iterable[Vote], question: Question) -> list[Standing]:
    """How the columns stand on a question, best first."""
    wins: dict[str, float] = {}
    counts: dict[str, int] = {}
    for vote in votes:
        if vote.question == question:
            for column, won in ((vote.winner, 0.5 if vote.tie else 1.0), (vote.loser, 0.5 if vote.tie else 0.0)):
                wins[column] = wins.get(column, 0.0) + won
                counts[column] = counts.get(column, 0) + 1
    standings = [Standing(column, wins[column], n, *wilson(wins[column], n)) for column, n in counts.items()]
    return sorted(standings, key=lambda standing: -standing.share)


def record(vote: Vote, folder: Path) -> None:
    """Keep a vote beside its comparison; a ballot that was answered before is not counted again."""
    if vote.at is not None and any(vote.at == before.at for before in _kept(folder)):
        return
    append_line(make_folder(folder) / "votes.jsonl", json.dumps(asdict(vote), ensure_ascii=False))


def recorded(folder: Path) -> list[Vote]:
    """The votes kept so far; what was skipped is none."""
    return [vote for vote in _kept(folder) if vote.winner]


def upcoming(folder: Path) -> int:
    """The number of the ballot that comes after all that were answered or skipped."""
    return 1 + max((place if vote.at is None else vote.at for place, vote in enumerate(_kept(folder))), default=-1)


def _kept(folder: Path) -> list[Vote]:
    votes = []
    for line in read_json_lines(folder / "votes.jsonl"):
        with contextlib.suppress(TypeError):  # a line that is no vote
            votes.append(Vote(**line))
    return votes
