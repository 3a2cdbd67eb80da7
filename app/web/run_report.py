"""What the page shows of a run: its status, losses, sample images and log."""

from markupsafe import Markup

from app.web.html import loss_plot, render
from app.web.run_list import BADGE_KINDS, label, progress_text
from hra_diffusion.adapters import registry
from hra_diffusion.comparison.statistics import score_summary
from training import scoring
from training.config import TrainConfig
from training.memory import advice
from training.runs import progress
from training.runs.event_text import PHASES
from training.runs.queue import Job

MAX_NOTICES = 4


def show_head(job: Job, state: progress.Progress, config: TrainConfig) -> Markup:
    """Return the run's name, its status, advice after a failure, and the latest notices."""
    return render(
        "run_head",
        job=job,
        method=registry.get_method(config.method).title,
        label="training" if job.status == "running" else label(job),
        kind=BADGE_KINDS.get(job.status, ""),
        progress=progress_text(job, state),
        percent=round(100 * state.step / max(1, job.steps)),
        step=state.step,
        advice=advice.advise(job.reason, config).text if job.status == "failed" else "",
        duration=progress.format_duration(sum(job.run.state.seconds.values())),
        notices=[text for text in state.notices if not state.best or text != state.best[1]][-MAX_NOTICES:],
        silence=silence_text(state) if job.status == "running" else "",
    )


def silence_text(state: progress.Progress) -> str:
    """Return a warning about a run that has written nothing for long; "" if it has."""
    if not (seconds := state.silence()):
        return ""
    phase = PHASES.get(state.phase, state.phase)
    return (
        f"Nothing has been heard of this run for {progress.format_duration(seconds)}; its last phase was: {phase}. "
        "It may hang; stop and resume it if this goes on."
    )


def show_loss(state: progress.Progress, total: int) -> Markup:
    """Return the plot of the losses so far, or nothing for fewer than two."""
    steps, losses = list(state.losses), list(state.losses.values())
    if len(steps) < 2:
        return Markup("")
    smoothed, validation = progress.smooth(losses), state.validation
    plot = loss_plot(steps, losses, smoothed, max(total, steps[-1]), validation)
    return render(
        "run_loss", plot=plot, last=smoothed[-1], validation=validation[max(validation)] if validation else None
    )


def show_samples(job: Job, state: progress.Progress, config: TrainConfig) -> Markup:
    """Return the sample images, newest first, down to those of the base model before training."""
    best, rounds = state.best[0] if state.best else scoring.best_step(state.scores), []
    for step in sorted(state.samples, reverse=True):
        files = [job.run.folder / "samples" / name for name in state.samples[step]]
        score = state.scores.get(step)
        rounds.append({
            "step": step,
            "images": [pair for pair in zip(files, config.sample_texts, strict=False) if pair[0].is_file()],
            "score": score_summary(score) if score else "",
            "best": step == best,
            "saved": step in state.checkpoints,
        })  # fmt: skip
    return render("run_samples", rounds=rounds, reason=state.best[1] if state.best else "")


def show_log(job: Job, state: progress.Progress) -> Markup:
    """Return the end of the run's log and, after a failure, of its process's output."""
    lines = [*state.log, *(progress.process_log(job.run) if job.status in ("failed", "died") else [])]
    return render("run_log", folder=job.run.folder.name, lines=lines)
