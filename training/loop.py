"""Train an adapter: one step, the loop, save. One loop for every base and every method."""

import contextlib
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.autograd.graph import increment_version

from hra_diffusion.adapters import attachment
from hra_diffusion.allocator import freed_memory_retained
from hra_diffusion.errors import Note, UserError
from hra_diffusion.evaluation.clip import Clip, default_source
from hra_diffusion.generation.png import PNG_KEY, describe, save_png
from hra_diffusion.generation.requests import Request, complete_settings
from hra_diffusion.generation.requests import Settings as DrawSettings
from hra_diffusion.generation.sampling import GenerationError, generate_batch
from hra_diffusion.models import loading
from hra_diffusion.models.noise import distillation_sign
from hra_diffusion.models.prompts import PromptWarning
from hra_diffusion.threads import share_cores, sharing_cores
from training import objective, scoring
from training.config import TrainConfig
from training.data import moved_photos
from training.data.captions import final_captions
from training.data.dataset import Dataset, load_dataset
from training.data.photo_files import find_photos
from training.memory.measure import forget_peak
from training.memory.savings import as_chosen, as_reduced, out_of_memory
from training.planning import planned
from training.recovery import reduce_memory
from training.runs.checkpoint import averaged, restore_latest, save_checkpoint, write_adapter
from training.runs.events import Failed, Finished, Listener, LogFile, Notice, Sample, Scored, Step, Stopped
from training.runs.run_folder import Run
from training.session import (
    PhaseTimer,
    Session,
    TrainingError,
    make_accelerator,
    onload,
    require_room,
    restore_eval,
    set_up,
)

MAX_SKIPPED = 20
"""Steps in a row that the loss scaler may skip before a run counts as broken."""

SAMPLE_STEPS = 15
"""Denoising steps of the sample pictures: enough to judge by, a second or two a round on the embedded base."""


@dataclass
class StopFlag:
    """Set once somebody asks the run to stop."""

    asked: bool = False


@contextlib.contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Within the block the first Ctrl-C or SIGTERM sets the flag; a second one ends the process at once."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def ask(number: int, frame: Any) -> None:
        if flag.asked:
            raise KeyboardInterrupt
        flag.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


DISTILLED = (
    "Training undoes the distillation, and the subject may not show at few steps; train on the base it was distillation_sign "
    "from, and use the adapter on this one"
)


def train(
    config: TrainConfig,
    output: Path,
    listeners: Sequence[Listener] = (),
    resume: bool = False,
    pipe: StableDiffusionPipeline | None = None,
    plan: bool = False,
) -> Path:
    """Train an adapter into ``output/name`` and return its file.

    ``resume`` goes on from the last checkpoint exactly as if the run had never stopped, with the same photos, which are
    found by their hashes if they have moved; a finished run is left alone.
    ``pipe``: a pipeline already held, instead of ``config.base``; the adapter stays on it. ``plan``: say first what the
    run will take. Ctrl-C and SIGTERM finish the step, keep it, and raise KeyboardInterrupt. Base, photos, targets and
    ``config.memory_limit`` are checked before anything is written.
    Raises PhotoError, BaseModelError, ConfigError, RunError, FileError or TrainingError: what is wrong and what to do.
    """
    run = Run(output / config.name)
    if run.checkpoints():
        config = as_reduced(as_chosen(config, run.config), run.config)
        run.require_resumable(config, resume)
        if run.finished:
            return run.adapter
    else:
        run.require_free()
    accelerator = make_accelerator(config)
    clock = PhaseTimer(accelerator.is_main_process, list(listeners))
    photos = moved_photos.find(run, config, clock.emit) if run.checkpoints() else find_photos(config.photos)
    forget_peak(str(accelerator.device))
    if plan or (config.memory_limit and not run.checkpoints()):
        asked, config = config, planned(config, output, accelerator.device.type, len(photos), clock.emit, pipe)
        if config != asked:  # precision or accumulation may be what was given up
            accelerator = make_accelerator(config)
    with clock.phase("load base"):
        pipe = pipe or load_base(config, str(accelerator.device), clock)
    if reason := distillation_sign(pipe):
        clock.emit(Notice(f"this base looks distillation_sign to draw in a few steps: {reason}. {DISTILLED}"))
    with clock.phase("read photos"):
        size = complete_settings(pipe, DrawSettings(width=config.resolution, height=config.resolution)).width
        if run.checkpoints():
            album = moved_photos.load_resumed_dataset(photos, run, config, size)
            config = moved_photos.with_present_paths(config, photos, run)
        else:
            album = load_dataset(config.photos, size, config.crop, config.boxes)
    clock.emit(final_captions(config, {photo.path: photo.caption for photo in album.photos}))
    require_room(config, pipe)
    cores = sharing_cores(accelerator.device.type)
    with (
        run_context(run, config, album, resume, accelerator, clock),
        restore_eval(pipe),
        freed_memory_retained(),
        cores,
    ):
        session = set_up(config, run, accelerator, pipe, album, clock)
        if run.checkpoints():
            restore_latest(session)
        with stop_signals() as stop:
            try:
                return learn(session, stop)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                reduce_memory(session, error)
            return learn(session, stop)


def load_base(config: TrainConfig, device: str, clock: PhaseTimer) -> StableDiffusionPipeline:
    """The base of a run; what is not certain about it is a notice."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Note)
        pipe = loading.load_base(
            config.base, device, config.dtype, config.base_weights, config.prediction_type, config.rescale_zero_snr
        )
    for warning in caught:
        if issubclass(warning.category, Note):
            clock.emit(Notice(str(warning.message)))
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    return pipe


@contextlib.contextmanager
def run_context(
    run: Run, config: TrainConfig, album: Dataset, resume: bool, accelerator: Accelerator, clock: PhaseTimer
) -> Iterator[None]:
    """Hold the run's folder (by the main process) and log to it; an error in the block marks the run as failed."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        yield
        return
    photos = [
        {"sha256": photo.sha256, "crop": list(photo.crop), "frame": list(photo.frame), "caption": photo.caption}
        for photo in album.photos
    ]
    with run.locked():
        run.begin(config, photos, resume)
        clock.add(LogFile(run.folder / "events.jsonl"))
        accelerator.wait_for_everyone()
        try:
            run.keep_photos([photo.image for photo in album.photos])
            yield
        except Exception as error:
            with contextlib.suppress(OSError):  # the reason matters more than a log that can't be written
                run.fail(str(error))
                clock.emit(Failed(str(error)))
            raise


def learn(session: Session, stop: StopFlag) -> Path:
    """The loop: sample, step, tell, keep; then save. Raises KeyboardInterrupt when stopped, the last step kept."""
    config = session.config
    if session.step == 0:
        draw_samples(session)
    with session.clock.phase("train"):
        while session.step < config.steps:
            share_cores()
            start, learning_rate = time.perf_counter(), rate(session)
            loss = train_step(session, learning_rate)
            seconds = round(time.perf_counter() - start, 4)
            session.clock.emit(Step(session.step, config.steps, round(loss, 6), learning_rate, seconds))
            last, stopping = session.step == config.steps, agreed(session, stop)
            if last or session.step % config.checkpoint_every == 0 or stopping:
                save_checkpoint(session)
            if last or samples_due(session):
                draw_samples(session)
            if stopping and not last:
                finish_early(session)
    return save(session)


def train_step(session: Session, learning_rate: float) -> float:
    """One optimiser step; returns its loss. Raises TrainingError on a loss or gradient that is not finite."""
    config, accelerator = session.config, session.accelerator
    for group in session.optimizer.param_groups:
        group["lr"] = learning_rate * group["part"]
    total = 0.0
    for micro in range(config.gradient_accumulation_steps):
        with accelerator.accumulate(session.denoiser):
            loss = batch_loss(session, session.step * config.gradient_accumulation_steps + micro)
            total += require_finite(session, "loss", loss.item()) / config.gradient_accumulation_steps
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(session.parameters.values(), config.max_grad_norm)
                if config.mixed_precision != "fp16":  # there the scaler skips such steps itself
                    require_finite(session, "gradient", float(cast(Tensor, norm)))
            session.optimizer.step()
            increment_version(list(session.parameters.values()))  # fused steps don't
            session.optimizer.zero_grad()
    session.step += 1
    if not skipped(session):
        update_averages(session)
    return total


def skipped(session: Session) -> bool:
    """Whether the loss scaler (float16) skipped this step. Raises TrainingError if it skips one after another."""
    session.skipped = session.skipped + 1 if session.accelerator.optimizer_step_was_skipped else 0
    if session.skipped >= MAX_SKIPPED:
        require_finite(session, "gradient", math.nan)
    return session.skipped > 0


def agreed(session: Session, stop: StopFlag) -> bool:
    """Whether any process was asked to stop; all of them learn it after the same step."""
    if session.accelerator.num_processes == 1:
        return stop.asked
    flag = torch.tensor(float(stop.asked), device=session.accelerator.device)
    return bool(session.accelerator.reduce(flag, "sum") > 0)  # type: ignore[operator]


def batch_loss(session: Session, position: int) -> Tensor:
    """The objective on batch number ``position`` (of all batches, over all processes)."""
    config, accelerator = session.config, session.accelerator
    position = position * accelerator.num_processes + accelerator.process_index
    batches = [session.photos.batch(config.batch_size, position, config.seed, "photos")]
    if session.class_images is not None:
        batches.append(session.class_images.batch(config.batch_size, position, config.seed, "class"))
    latents = torch.cat([latents for latents, _ in batches])
    text = {key: torch.cat([text[key] for _, text in batches]) for key in batches[0][1]}
    alphas, kind = session.process.alphas_cumprod, session.process.prediction_type
    generator = objective.stream(config.seed, "noise", position)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = objective.sample_timesteps(len(latents), len(alphas), config.timestep_bias, generator)
    wanted = objective.target(latents, noise, timesteps, alphas, kind)
    weights = objective.min_snr_weights(timesteps, alphas, config.min_snr_gamma, kind, config.min_snr_formula)
    latents = objective.noisy(latents, noise, timesteps, alphas)
    device = accelerator.device
    text = {key: value.to(device) for key, value in text.items()}
    prediction = session.denoiser(latents.to(device), timesteps.to(device), text)
    classes = config.batch_size if session.class_images is not None else 0
    loss = objective.denoising_loss(
        prediction, wanted.to(device), weights.to(device), classes, config.prior_loss_weight
    )
    penalties = [attachment.penalty(model, config.name) for model in session.trained.values()]
    return loss + sum(penalty.to(device) for penalty in penalties if penalty is not None)


def rate(session: Session) -> float:
    """The learning rate of the step to come."""
    config = session.config
    step = min(session.step, config.steps - 1)
    return config.learning_rate * objective.learning_rate_factor(
        step, config.steps, config.lr_warmup_steps, config.lr_scheduler
    )


def require_finite(session: Session, what: str, value: float) -> float:
    """``value`` if finite. Raises TrainingError saying what is kept and what to change."""
    if math.isfinite(value):
        return value
    kept = session.run.checkpoints()
    where = f"the last good checkpoint is {kept[-1]}" if kept else "there was no checkpoint yet"
    raise TrainingError(
        f"the {what} became {value} at step {session.step + 1}; {where}; "
        f"try a lower --learning-rate than {session.config.learning_rate:g}, or --dtype float32, under another --name"
    )


def update_averages(session: Session) -> None:
    """Move the moving averages towards the parameters, faster at the start."""
    decay = min(session.config.ema_decay, (1 + session.step) / (10 + session.step))
    for key, average in session.averages.items():
        average.lerp_(session.parameters[key].detach(), 1 - decay)


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


def finish_early(session: Session) -> None:
    """Mark the run as stopped, its last step kept, and leave."""
    if session.accelerator.is_main_process:
        session.run.write_state("stopped", session.step, session.config.steps)
    session.clock.emit(Stopped(session.step))
    raise KeyboardInterrupt


def save(session: Session) -> Path:
    """Write the finished adapter and close the run; returns the adapter's file."""
    run, config, phases = session.run, session.config, session.clock.phases
    if session.accelerator.is_main_process:
        write_adapter(session, run.adapter)
        score_samples(session)
        run.write_state("finished", session.step, config.steps, seconds=phases)
    session.clock.emit(Finished(str(run.adapter), config.steps, round(sum(phases.values()), 1), dict(phases)))
    session.accelerator.wait_for_everyone()
    return run.adapter
