"""Generate a run's sample images; once the run has finished, score them and name the best checkpoint."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from hra_diffusion.errors import UserError
from hra_diffusion.evaluation.clip import Clip, Score, default_source
from hra_diffusion.generation.png import PNG_KEY, describe, save_png
from hra_diffusion.generation.requests import Request, complete_settings
from hra_diffusion.generation.requests import Settings as GenerationSettings
from hra_diffusion.generation.sampling import GenerationError, generate_batch
from hra_diffusion.models.prompts import PromptWarning
from training import scoring
from training.runs.checkpoint import averaged
from training.runs.events import Notice, Sample, Scored
from training.session.devices import onload
from training.session.state import Session
from training.settings.monitoring import SAMPLE_STEPS
from training.settings.subject import Concept


def samples_due(session: Session) -> bool:
    """Return whether to generate sample images after this step, as configured or requested from the page."""
    every = session.config.sample_every
    return (every > 0 and session.step % every == 0) or (
        session.accelerator.is_main_process and session.run.take_request("sample-now")
    )


def generate_samples(session: Session) -> None:
    """Generate an image for each sample prompt: at step 0 with the base model, later with the current adapter."""
    config, pipe = session.config, session.pipe
    if not session.accelerator.is_main_process or not config.sample_prompts:
        return
    settings = GenerationSettings(steps=SAMPLE_STEPS, width=config.resolution, height=config.resolution)
    settings = complete_settings(pipe, settings)
    weights = ((config.name, 1.0),) if session.step else ()
    requests = [Request(text, config.seed, weights) for text in config.sample_texts]
    try:
        with session.timer.phase("samples"), averaged(session), onload(pipe, config), warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptWarning)  # emitted as notices at the start of the run
            images = generate_batch(pipe, requests, settings, config.sample_batch_size)
    except GenerationError as error:  # the adapter may be usable nevertheless
        session.timer.emit(Notice(f"no sample images at step {session.step}: {error}"))
        return
    for number, (request, image) in enumerate(zip(requests, images, strict=True)):
        image.info[PNG_KEY] = describe(pipe, request, settings)
        save_png(image, session.run.sample_path(session.step, number))
    paths = tuple(str(session.run.sample_path(session.step, number)) for number in range(len(images)))
    session.timer.emit(Sample(session.step, paths))


def name_best_checkpoint(session: Session) -> None:
    """Emit the checkpoint that CLIP scores and validation losses favour, and a notice if it is not the last one."""
    run = session.run
    losses = {step: loss for step, loss in session.validation_losses.items() if run.checkpoint_folder(step).is_dir()}
    if best := scoring.choose(score_samples(session), losses, session.step):
        session.timer.emit(best)
        if best.step != session.step:
            session.timer.emit(Notice(best.reason))


def score_samples(session: Session) -> dict[int, Score]:
    """Return the CLIP scores of the sample images of each checkpoint and of the base model, and emit them.

    There are none without sample images or without a local CLIP model: none is downloaded.
    """
    config, run = session.config, session.run
    rounds = {step: files for step, files in run.samples().items() if step == 0 or run.checkpoint_folder(step).is_dir()}
    if not rounds:
        return {}
    try:
        clip = Clip(default_source(config.base), local_files_only=True)
    except UserError:
        return {}
    with session.timer.phase("scores"):
        subjects = dict.fromkeys(subject for subject, _ in config.samples)
        scores = scoring.mean_scores([_scores(session, rounds, subject, clip) for subject in subjects])
    for step, score in scores.items():
        session.timer.emit(Scored(step, round(score.subject or 0.0, 4), round(score.prompt, 4)))
    return scores


def _scores(session: Session, rounds: Mapping[int, Sequence[Path]], subject: Concept, clip: Clip) -> dict[int, Score]:
    """Return the scores by step of the sample images of one subject, compared with its photos."""
    own = {number: prompt for number, (other, prompt) in enumerate(session.config.samples) if other == subject}
    prompts = [prompt.replace("{subject}", subject.class_noun) for prompt in own.values()]
    files = {step: [paths[number] for number in own if number < len(paths)] for step, paths in rounds.items()}
    concept = session.config.subjects.index(subject)
    photos = [photo.image for photo in session.dataset.photos if photo.concept == concept]
    return scoring.score_rounds(files, prompts, photos, clip)
