"""Train an adapter: one step, the loop, save. One loop for every base and every method."""

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate import Accelerator
from diffusers import StableDiffusionPipeline

from hra_diffusion.allocator import memory_kept
from hra_diffusion.errors import Note
from hra_diffusion.generation.requests import Settings as DrawSettings
from hra_diffusion.generation.requests import complete_settings
from hra_diffusion.models import loading
from hra_diffusion.models.noise import distilled
from hra_diffusion.threads import share_cores, sharing_cores
from training.config import TrainConfig
from training.data import moved_photos
from training.data.captions import final_captions
from training.data.photos import Dataset, find_photos, ingest
from training.memory.measure import forget_peak
from training.memory.savings import as_chosen, as_reduced, out_of_memory
from training.planning import planned
from training.recovery import reduce_memory
from training.runs.checkpoint import restore_latest, save_checkpoint, write_adapter
from training.runs.events import Failed, Finished, Listener, LogFile, Notice, Step, Stopped
from training.runs.run_folder import Run
from training.samples import draw_samples, samples_due, score_samples
from training.session.devices import make_accelerator, restore_eval
from training.session.model import require_room
from training.session.optimizer import rate
from training.session.phase_timer import PhaseTimer
from training.session.setup import set_up
from training.session.state import Session
from training.step import train_step
from training.stop import StopFlag, agreed, stop_signals

DISTILLED = (
    "Training undoes the distillation, and the subject may not show at few steps; train on the base it was distilled "
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
    if reason := distilled(pipe):
        clock.emit(Notice(f"this base looks distilled to draw in a few steps: {reason}. {DISTILLED}"))
    with clock.phase("read photos"):
        size = complete_settings(pipe, DrawSettings(width=config.resolution, height=config.resolution)).width
        if run.checkpoints():
            album = moved_photos.ingest_kept(photos, run, config, size)
            config = moved_photos.with_present_paths(config, photos, run)
        else:
            album = ingest(config.photos, size, config.crop, config.boxes)
    clock.emit(final_captions(config, {photo.path: photo.caption for photo in album.photos}))
    require_room(config, pipe)
    cores = sharing_cores(accelerator.device.type)
    with run_context(run, config, album, resume, accelerator, clock), restore_eval(pipe), memory_kept(), cores:
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
