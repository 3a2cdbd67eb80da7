"""Blind votes: two unlabelled images of a comparison, and which is better. Votes are stored beside the comparison."""

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from hra_diffusion import records
from hra_diffusion.files import append_line, make_folder

Question = Literal["subject", "prompt"]
QUESTIONS: dict[Question, str] = {
    "subject": "Which one looks more like the subject in the photos?",
    "prompt": "Which one follows the prompt better?",
}


@dataclass(frozen=True)
class Ballot:
    """One question about two samples (indices), as shown on the left and on the right."""

    question: Question
    left: int
    right: int


@dataclass(frozen=True)
class Vote:
    """The answer to a ballot: the labels of the winning and the losing variant; both are empty if it was skipped.

    ``tie``: neither was better. ``at``: index of the ballot.
    """

    question: Question
    winner: str
    loser: str
    tie: bool = False
    at: int | None = None


@dataclass(frozen=True)
class Standing:
    """A variant's wins among its votes on one question; a tie is half a win.

    ``low`` and ``high`` are the 95 % Wilson interval of the share of wins.
    """

    variant: str
    wins: float
    votes: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """Wins divided by votes; 0 without votes."""
        return self.wins / self.votes if self.votes else 0.0


def ballots(rows: int, variants: Sequence[int], width: int, seed: int) -> list[Ballot]:
    """Return a ballot for every row, pair of variants and question, in random order and with random sides.

    Args:
        variants: indices of the variants that take part.
        width: number of samples per row.
    """
    rng, result = random.Random(seed), []
    for row in range(rows):
        for pair in combinations(variants, 2):
            for question in QUESTIONS:
                left, right = rng.sample(pair, 2)
                result.append(Ballot(question, row * width + left, row * width + right))
    rng.shuffle(result)
    return result


def wilson(wins: float, votes: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (1927), which holds for few votes and stays within 0 and 1."""
    if not votes:
        return 0.0, 1.0
    share, correction = wins / votes, z * z / votes
    centre = (share + correction / 2) / (1 + correction)
    half = z / (1 + correction) * math.sqrt(share * (1 - share) / votes + correction / (4 * votes))
    return max(0.0, centre - half), min(1.0, centre + half)


def tally(votes: Iterable[Vote], question: Question) -> list[Standing]:
    """Return the variants' standings on a question, best first."""
    wins: dict[str, float] = {}
    counts: dict[str, int] = {}
    for vote in votes:
        if vote.question == question:
            for variant, won in ((vote.winner, 0.5 if vote.tie else 1.0), (vote.loser, 0.5 if vote.tie else 0.0)):
                wins[variant] = wins.get(variant, 0.0) + won
                counts[variant] = counts.get(variant, 0) + 1
    standings = [Standing(variant, wins[variant], n, *wilson(wins[variant], n)) for variant, n in counts.items()]
    return sorted(standings, key=lambda standing: -standing.share)


def record(vote: Vote, folder: Path) -> None:
    """Append a vote to the comparison's ``votes.jsonl``, unless its ballot was answered before."""
    if vote.at is not None and any(vote.at == earlier.at for earlier in _read(folder)):
        return
    append_line(make_folder(folder) / "votes.jsonl", json.dumps(asdict(vote), ensure_ascii=False))


def recorded(folder: Path) -> list[Vote]:
    """Return the comparison's votes, without skipped ballots."""
    return [vote for vote in _read(folder) if vote.winner]


def upcoming(folder: Path) -> int:
    """Return the index of the first ballot after all that were answered or skipped."""
    return 1 + max((line if vote.at is None else vote.at for line, vote in enumerate(_read(folder))), default=-1)


def _read(folder: Path) -> list[Vote]:
    return records.read_lines(folder / "votes.jsonl", Vote)
