"""Blind votes on a comparison: pairs of images without names."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from app.web.html import note, render
from hra_diffusion.comparison import report, votes
from hra_diffusion.comparison.compare import Comparison
from hra_diffusion.comparison.votes import QUESTIONS, Vote
from hra_diffusion.errors import UserError

REVEALED_AFTER = 10
"""Number of votes after which the names are shown."""
MAX_PHOTOS = 4


def _ballots(comparison: Comparison) -> list[votes.Ballot]:
    width, samples = len(comparison.variants), len(comparison.samples)
    return votes.ballots(samples // width, range(width), width, seed=samples)


def show_ballot(folder: Path, comparison: Comparison) -> tuple[Markup, Markup]:
    """Return the next question with its two images, and the standings."""
    ballots, cast, number = _ballots(comparison), votes.recorded(folder), votes.upcoming(folder)
    if len(comparison.variants) < 2:
        return note("At least two variants are needed for a vote.", "plain"), Markup("")
    if number >= len(ballots):
        return note("You have voted on all pairs. Thank you!", "plain"), show_standings(cast, True)
    ballot = ballots[number]
    sides = (("Left", ballot.left), ("Right", ballot.right))
    question = render(
        "ballot",
        question=QUESTIONS[ballot.question],
        photos=comparison.photos[:MAX_PHOTOS] if ballot.question != "prompt" else (),
        prompt=_prompt(comparison, ballot),
        sides=[(side, sample, comparison.samples[sample].image) for side, sample in sides],
        number=number,
        comparison=folder.name,
    )
    return question, show_standings(cast, len(cast) >= REVEALED_AFTER)


def _prompt(comparison: Comparison, ballot: votes.Ballot) -> str:
    prompt = comparison.prompts[ballot.left // len(comparison.variants) // len(comparison.seeds)]
    return prompt.replace("{subject}", comparison.variants[-1].subject)  # the base's subject would identify it


def show_standings(cast: Sequence[Vote], revealed: bool) -> Markup:
    """Return each variant's wins with Wilson's interval, or only the number of votes until they are revealed."""
    tables = [(text, votes.tally(cast, question)) for question, text in QUESTIONS.items()] if revealed else []
    return render("standings", revealed=revealed, count=len(cast), threshold=REVEALED_AFTER, tables=tables)


def record_vote(folder: Path, comparison: Comparison, number: int, answer: str, sample: int | None) -> None:
    """Record the answer to a ballot. Raises UserError for an unknown ballot, or a sample that it does not show."""
    ballots = _ballots(comparison)
    if number >= len(ballots):
        raise UserError("this comparison has no such question; reload the page")
    ballot = ballots[number]
    if answer == "skip":
        votes.record(Vote(ballot.question, "", "", at=number), folder)
        return
    winner = ballot.left if answer == "tie" else sample
    if winner not in (ballot.left, ballot.right):
        raise UserError("this question has been answered; answer the one shown now")
    loser = ballot.right if winner == ballot.left else ballot.left
    variants = [comparison.samples[index].variant for index in (winner, loser)]
    votes.record(Vote(ballot.question, *variants, tie=answer == "tie", at=number), folder)
    report.write(comparison, folder / "report.html", votes.recorded(folder))
