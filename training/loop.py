"""The training loop, for every base model and method."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate import Accelerator
from diffusers import StableDiffusionPipeline

from hra_diffusion.allocator import freed_memory_retained
from hra_diffusion.errors import Note
from hra_diffusion.files import sweep
from hra_diffusion.generation.requests import Settings as GenerationSettings
from hra_diffusion.generation.requests import complete_settings
from hra_diffusion.models import families, loading
from hra_diffusion.threads import share_cores, sharing_cores
from training.config import TrainConfig
from training.data import moved_photos
from training.data.concepts import concept_numbers
from training.data.dataset import Dataset, load_dataset
from training.data.photo_files import find_photos
from training.data.validation_photo import held_out_photo
from training.errors import TrainingError
from training.init_adapter import check_init_adapter
from training.memory.peak import reset_peak_memory
from training.memory.savings import restore_reductions, restore_savings
from training.noising import require_weighting
from training.planning import plan_run, use_of_own_process
from training.recovery import reduce_memory
from training.runs.checkpoint import restore_latest, save_checkpoint, write_adapter
from training.runs.events import Failed, Finished, Listener, Notice, Stopped
from training.runs.identity import PhotoRecord
from training.runs.listeners import LogFile
from training.runs.run_folder import Run
from training.runs.state import LOG
from training.runs.trackers import TrackerListener, require_trackers, start_trackers
from training.samples import generate_samples, name_best_checkpoint, samples_due
from training.session.devices import make_accelerator, restore_eval
from training.session.model import check_adapter
from training.session.optimizer import check_optimizer, current_learning_rate
from training.session.phase_timer import PhaseTimer
from training.session.processes import PeerLostError, Processes, ran_out_of_memory
from training.session.setup import set_up
from training.session.state import Session
from training.step import TrainingStep
from training.step_graph import capture_step
from training.step_log import StepLog
from training.stop import StopFlag, stop_requested, stop_signals
from training.validation import is_exhausted, validate, validation_due

DISTILLED = (
    "Training undoes the distillation, and the subject may not show with few steps; train on the base it was distilled "
    "from and use the adapter on this one"
)


def train(
    config: TrainConfig,
    output: Path,
    listeners: Sequence[Listener] = (),
    resume: bool = False,
    pipe: StableDiffusionPipeline | None = None,
    plan: bool = False,
) -> Path:
    """Train an adapter in the folder ``output/name`` and return its file.

    Optimiser, base model, photos, targets and ``config.memory_limit`` are checked before anything is written. Ctrl-C
    and SIGTERM finish the current step, save a checkpoint and raise KeyboardInterrupt.

    Args:
        config: what to train.
        output: the folder of all runs.
        listeners: called with every event (see ``training.runs.events``).
        resume: continue from the last checkpoint, bit for bit as without the interruption. Photos that have moved are
            found by their hashes. A finished run returns at once, unless ``config`` asks for more steps.
        pipe: a loaded pipeline to use instead of ``config.base``. The adapter stays attached to it.
        plan: emit the predicted memory and time first.

    Raises UserError: PhotoError, BaseModelError, ConfigError, RunError, FileError or TrainingError.
    """
    run = Run(output / config.name)
    if run.checkpoints():
        before = run.started_with
        config = restore_reductions(restore_savings(config, before), before)
        run.require_resumable(config, resume)
        if run.finished and not run.goes_on(config):
            return run.adapter
    else:
        run.require_free()
    require_trackers(config.report_to)
    accelerator = make_accelerator(config)
    check_optimizer(config, accelerator.device)
    timer = PhaseTimer(accelerator.is_main_process, list(listeners))
    photos = moved_photos.find(run, config, timer.emit) if run.checkpoints() else find_photos(config.photos)
    reset_peak_memory(str(accelerator.device))
    memory = 0
    if plan or (config.memory_limit and not run.checkpoints()):
        requested = config
        config, memory = plan_run(config, output, accelerator.device.type, len(photos), timer.emit, pipe)
        if config != requested:  # precision or gradient accumulation may have changed
            accelerator = make_accelerator(config)
    with timer.phase("load base"):
        pipe = pipe or load_base(config, str(accelerator.device), timer)
    check_distillation(config, pipe, timer)
    with timer.phase("read photos"):
        size = complete_settings(pipe, GenerationSettings(width=config.resolution, height=config.resolution)).width
        config, dataset = read_photos(config, run, photos, size)
    check_run(config, run, pipe, dataset)
    processes = Processes(accelerator)
    context = run_context(run, config, dataset, resume, accelerator, timer, processes, memory)
    with context, restore_eval(pipe, config), freed_memory_retained(), sharing_cores(accelerator.device.type):
        session = set_up(config, run, accelerator, pipe, dataset, timer, processes)
        if run.checkpoints():
            continue_run(session)
        return run_session(session)


def check_run(config: TrainConfig, run: Run, pipe: StableDiffusionPipeline, dataset: Dataset) -> None:
    """Raise UserError if the adapter can't be used, or a new run lacks photos or the adapter to start from."""
    check_adapter(config, pipe)
    require_weighting(config, families.noise_process(pipe))
    if not run.checkpoints():
        held_out_photo(dataset.photos, config.validation, config.seed)
        if config.init_adapter:
            check_init_adapter(config.init_adapter, config)


def check_distillation(config: TrainConfig, pipe: StableDiffusionPipeline, timer: PhaseTimer) -> None:
    """Emit a notice for a base that looks distilled. Raises TrainingError for one with flow matching."""
    if reason := families.of(pipe).distillation_sign(pipe):
        looks = f"looks distilled to generate in a few steps: {reason}. {DISTILLED}"
        if families.of(pipe).flow_matching:
            raise TrainingError(f"{config.base} {looks}")
        timer.emit(Notice(f"this base {looks}"))


def continue_run(session: Session) -> None:
    """Restore the newest checkpoint. A notice says which learning rate follows if there are more steps than before."""
    before, config = session.run.started_with.steps, session.config
    restore_latest(session)
    if config.steps > before:
        rate = f"{current_learning_rate(session):.3g}, as in the {config.lr_scheduler} schedule of {config.steps} steps"
        steps = f"from step {session.step} to {config.steps}"
        session.timer.emit(Notice(f"the run of {before} steps goes on {steps}; the learning rate is now {rate}"))


def read_photos(config: TrainConfig, run: Run, photos: list[Path], size: int) -> tuple[TrainConfig, Dataset]:
    """Read and crop the photos to ``size`` pixels, and return them with the configuration that names their files.

    A resumed run gets the photos it began with, ``photos``, and their current paths.
    """
    if not run.checkpoints():
        concepts = concept_numbers(config)
        return config, load_dataset(config.photos, size, config.crop, config.boxes, config.mask, concepts)
    dataset = moved_photos.load_resumed_dataset(photos, run, config, size)
    return moved_photos.with_current_paths(config, photos, run), dataset


def load_base(config: TrainConfig, device: str, timer: PhaseTimer) -> StableDiffusionPipeline:
    """Load the base model of a run. Warnings about it become notices."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Note)
        pipe = loading.load_base(
            config.base,
            device,
            config.dtype,
            config.base_weights,
            config.prediction_type,
            config.rescale_zero_snr,
            config.base_revision,
            config.base_variant,
        )
    for warning in caught:
        if issubclass(warning.category, Note):
            timer.emit(Notice(str(warning.message)))
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    return pipe


@contextlib.contextmanager
def run_context(
    run: Run, config: TrainConfig, dataset: Dataset, resume: bool, accelerator: Accelerator, timer: PhaseTimer,
    processes: Processes, memory: int,
) -> Iterator[None]:  # fmt: skip
    """Within the block, lock the run's folder, use its device and log events to it. An error marks the run as failed.

    The main process does so; the others wait until it has begun, and only record errors that it does not know.
    """
    log = LogFile(run.folder / LOG)
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        try:
            yield
        except Exception as error:
            if not processes.agreeing and run.state.status != "failed":
                record_failure(run, f"process {processes.index}: {error}", log)
            raise
        return
    photos = [PhotoRecord.of(photo) for photo in dataset.photos]
    with run.locked(), use_of_own_process(config, run.index, memory):
        for folder in (run.folder, run.folder.parent / ".cache"):
            sweep(folder)
        run.begin(config, photos, resume)
        timer.add_listener(log)
        accelerator.wait_for_everyone()
        try:
            run.save_photos([photo.image for photo in dataset.photos])
            run.save_masks([photo.mask for photo in dataset.photos])
            if config.report_to:
                timer.add_listener(TrackerListener(start_trackers(config, run.folder)))
            yield
        except Exception as error:
            if not (isinstance(error, PeerLostError) and run.state.status == "failed"):  # the lost process said why
                record_failure(run, str(error), timer.emit)
            raise


def record_failure(run: Run, reason: str, emit: Listener) -> None:
    """Mark a run as failed and emit the event, unless its folder can't be written."""
    with contextlib.suppress(OSError):
        run.fail(reason)
        emit(Failed(reason))


def run_session(session: Session) -> Path:
    """Run all steps; whenever memory runs out, in any process, reduce the memory of all and continue.

    Returns the adapter's file.
    """
    session.processes.agreeing = True
    with stop_signals() as stop:
        while True:
            try:
                return run_steps(session, stop)
            except Exception as error:
                session.processes.report(session.step, error)
                if not ran_out_of_memory(error):
                    raise
                reduce_memory(session, error)


def run_steps(session: Session, stop: StopFlag) -> Path:
    """Take all remaining steps with their checkpoints and samples, then write the adapter and return its file.

    Raises KeyboardInterrupt if the run is stopped, after saving a checkpoint.
    """
    if session.step == 0:
        generate_samples(session)
    with session.timer.phase("train"):
        if session.step < session.config.steps:
            log = StepLog(session)
            try:
                take_steps(session, log, stop)
            except Exception as error:
                session.processes.report(session.step, error)
                if ran_out_of_memory(error):  # the steps before it are complete
                    log.read()
                raise
    return finish_run(session)


def take_steps(session: Session, log: StepLog, stop: StopFlag) -> None:
    """Take all remaining steps, or fewer if the run stops early.

    Losses are read before a checkpoint, samples or a validation, so that no NaN is saved.
    """
    config, step = session.config, TrainingStep(session)
    capture_step(step)
    if session.step == 0 and session.validation is not None:
        validate(session)
    while session.step < config.steps and not is_exhausted(session):
        share_cores()
        log.begin_step()
        learning_rate = current_learning_rate(session)
        log.add(learning_rate, step(learning_rate))
        if validation_due(session):
            log.read()
            validate(session)
        last = session.step == config.steps or is_exhausted(session)
        saving = last or session.step % config.checkpoint_every == 0
        reading = saving or session.step % log.interval == 0
        if reading:
            log.read()
        stopping = stop_requested(session, stop, reading)
        if saving or stopping:
            log.read()
            save_checkpoint(session)
        if last or samples_due(session):
            log.read()
            generate_samples(session)
        if stopping and not last:
            stop_run(session, stop)


def stop_run(session: Session, stop: StopFlag) -> None:
    """Mark the run as stopped and raise KeyboardInterrupt."""
    if session.accelerator.is_main_process:
        session.run.write_state("stopped", session.step, session.config.steps, stop_requested=stop.requested)
    session.timer.emit(Stopped(session.step))
    raise KeyboardInterrupt


def finish_run(session: Session) -> Path:
    """Write the adapter, name the best checkpoint and mark the run as finished. Returns the adapter's file."""
    run, config, phases = session.run, session.config, session.timer.phases
    if session.step < config.steps:
        session.timer.emit(
            Notice(f"stopped early at step {session.step}: {config.early_stop} validation losses without a new minimum")
        )
    if session.accelerator.is_main_process:
        write_adapter(session, run.adapter)
        name_best_checkpoint(session)
        run.prune_states(1)
        run.write_state("finished", session.step, config.steps, seconds=phases)
    session.timer.emit(Finished(str(run.adapter), session.step, round(sum(phases.values()), 1), dict(phases)))
    session.processes.agree(session.step)
    return run.adapter
