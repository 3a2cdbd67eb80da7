"""Sample images of a run, and their scores once it has finished."""

import warnings

from hra_diffusion.errors import UserError
from hra_diffusion.evaluation.clip import Clip, default_source
from hra_diffusion.generation.png import PNG_KEY, describe, save_png
from hra_diffusion.generation.requests import Request, complete_settings
from hra_diffusion.generation.requests import Settings as DrawSettings
from hra_diffusion.generation.sampling import GenerationError, generate_batch
from hra_diffusion.models.prompts import PromptWarning
from training import scoring
from training.runs.checkpoint import averaged
from training.runs.events import Notice, Sample, Scored
from training.session.devices import onload
from training.session.state import Session

SAMPLE_STEPS = 15
"""Denoising steps of the sample pictures: enough to judge by, a second or two a round on the embedded base."""


def samples_due(session: Session) -> bool:
    """Whether sample pictures are due after this step: by the configuration, or because somebody asked."""
    every = session.config.sample_every
    return (every > 0 and session.step % every == 0) or (
        session.accelerator.is_main_process and session.run.samples_asked()
    )


def draw_samples(session: Session) -> None:
    """Draw the sample prompts: at step 0 with the base, later with the adapter as it is."""
    config, pipe = session.config, session.pipe
    if not session.accelerator.is_main_process or not config.sample_prompts:
        return
    side = int(session.photos.mean.shape[-1] * pipe.vae_scale_factor)
    settings = complete_settings(pipe, DrawSettings(steps=SAMPLE_STEPS, width=side, height=side))
    mix = ((config.name, 1.0),) if session.step else ()
    prompts = [prompt.replace("{subject}", config.subject) for prompt in config.sample_prompts]
    requests = [Request(prompt, config.seed, mix) for prompt in prompts]
    try:
        with session.clock.phase("samples"), averaged(session), onload(pipe, config), warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptWarning)  # they are notices since the start of the run
            pictures = generate_batch(pipe, requests, settings, config.sample_batch_size)
    except GenerationError as error:  # what is learned may be good all the same
        session.clock.emit(Notice(f"no sample pictures of step {session.step}: {error}"))
        return
    for number, (request, picture) in enumerate(zip(requests, pictures, strict=True)):
        picture.info[PNG_KEY] = describe(pipe, request, settings)
        save_png(picture, session.run.sample(session.step, number))
    paths = tuple(str(session.run.sample(session.step, number)) for number in range(len(pictures)))
    session.clock.emit(Sample(session.step, paths))


def score_samples(session: Session) -> None:
    """Say how like the photos and the prompts each round's pictures are, and which checkpoint looks best.

    Without a CLIP model at hand nothing is said: none is downloaded for it, nor loaded where no pictures are.
    """
    config, run = session.config, session.run
    rounds = {step: files for step, files in run.samples().items() if step == 0 or run.checkpoint(step).is_dir()}
    if not rounds:
        return
    try:
        clip = Clip(default_source(config.base), local_files_only=True)
    except UserError:
        return
    with session.clock.phase("scores"):
        prompts = [prompt.replace("{subject}", config.class_noun) for prompt in config.sample_prompts]
        found = scoring.score_rounds(rounds, prompts, [photo.image for photo in session.album.photos], clip)
    for step, score in found.items():
        session.clock.emit(Scored(step, round(score.subject or 0.0, 4), round(score.prompt, 4)))
    if said := scoring.advice(found):
        session.clock.emit(Notice(said))
