"""Checkpoints of a run: the adapter, and the state of training to resume from."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hra_diffusion.adapters import adapter_file, fingerprint
from hra_diffusion.errors import first_line
from hra_diffusion.files import atomic_path, has_changed, save_tensors
from hra_diffusion.models import noise
from hra_diffusion.pipeline import base_name_of
from training.memory.peak import peak_memory
from training.runs import identity as identities
from training.runs import progress
from training.runs.events import Checkpoint, Notice
from training.runs.identity import TRAINING_STATE, Identity, PhotoRecord
from training.runs.run_folder import RunError
from training.session.model import subject_fields
from training.session.optimizer import GROUP_STATE
from training.session.state import Session


def save_checkpoint(session: Session) -> None:
    """Save the adapter and the state of training at the current step, on the main process."""
    if session.accelerator.is_main_process:
        session.run.require_lease()
        folder = session.run.checkpoint_folder(session.step)
        with atomic_path(folder) as unfinished:
            photos = [PhotoRecord.of(photo) for photo in session.dataset.photos]
            metadata = identities.metadata(Identity(session.config, photos, session.init_sha256))
            save_tensors(unfinished / TRAINING_STATE, training_state(session), metadata, checksum=True)
            write_adapter(session, unfinished / "adapter.safetensors")
        session.run.prune_states(session.config.keep_states)
        session.run.write_state("running", session.step, session.config.steps, restarts=0)
        session.timer.emit(Checkpoint(session.step, str(folder / "adapter.safetensors")))
    session.processes.agree(session.step)


def training_state(session: Session) -> dict[str, Tensor]:
    """Return parameters, optimiser state, moving averages and, in float16, the loss scaler's state, by file key."""
    state = {"step": torch.tensor(session.step), "processes": torch.tensor(session.accelerator.num_processes)}
    moments = session.optimizer.state
    for key, parameter in session.parameters.items():
        state[f"parameter/{key}"] = parameter
        for moment, value in moments.get(parameter, {}).items():
            # copied because parameters share tables of the 8-bit optimiser, whose step is a number
            state[f"moment/{moment}/{key}"] = torch.as_tensor(value).clone()
    state |= {f"average/{key}": average for key, average in session.moving_averages.items()}
    for number, group in enumerate(session.optimizer.param_groups):
        numbers = {name: torch.tensor(group[name], dtype=torch.float64) for name in GROUP_STATE if name in group}
        # as integers, because a file's floating-point tensors are float32
        state |= {f"group/{number}/{name}": value.view(torch.int64) for name, value in numbers.items()}
    scaler = session.accelerator.scaler.state_dict() if session.accelerator.scaler else {}
    return state | {f"scaler/{key}": torch.tensor(value) for key, value in scaler.items()}


def restore_latest(session: Session) -> None:
    """Restore the newest whole checkpoint.

    Raises RunError if there is none, or if the number of processes has changed.
    """
    if not (folders := session.run.states()):
        raise RunError(
            f"the training states of {session.run.folder} were deleted, so that it can't go on; start another --name "
            f"from its adapter with --init-adapter {session.run.checkpoints()[-1] / 'adapter.safetensors'}"
        )
    for folder in reversed(folders):
        try:
            state = read_state(folder, session)
            info, _ = adapter_file.read(folder / "adapter.safetensors")
            seconds = TypeAdapter(dict[str, float]).validate_python(info.training.get("seconds", {}))
        except (OSError, SafetensorError, ValueError) as error:
            reason = first_line(error)
            session.timer.emit(Notice(f"checkpoint {folder} can't be read ({reason}); using the previous one"))
            continue
        if (processes := int(state["processes"])) != session.accelerator.num_processes:
            raise RunError(f"{session.run.folder} was trained by {processes} processes; resume it with the same number")
        session.timer.add_earlier(seconds)
        if (distance := fingerprint.distance(info.fingerprint, session.trained_components)) > fingerprint.TOLERANCE:
            session.timer.emit(
                Notice(
                    f"the weights of {session.config.base} have changed since the last checkpoint (fingerprints differ "
                    f"by {distance:.2g}): the adapter will differ from that of a run without the interruption"
                )
            )
        return restore(session, state)
    raise RunError(f"no checkpoint of {session.run.folder} can be read; start a new run with another --name")


def read_state(folder: Path, session: Session) -> dict[str, Tensor]:
    """Return the ``training_state`` in a checkpoint's folder. Raises ValueError if it is damaged or of other layers."""
    path = folder / TRAINING_STATE
    with safe_open(path, "pt") as file:
        if has_changed(path, file.metadata() or {}, {identities.KEY}):
            raise ValueError(f"{path.name} does not match its checksum")
        # copies: Windows can't delete a file while tensors are mapped to it
        state = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (not a dict)
    expected = training_state(session)  # its moments may be missing before the first step
    needed = {key for key in expected if not key.startswith("moment/")}
    for key in needed | {key for key in state if key.startswith("parameter/")}:
        if key not in needed or key not in state or state[key].shape != expected[key].shape:
            raise ValueError(f"{path.name} does not hold {key} as this run needs it")
    return state


def restore(session: Session, state: Mapping[str, Tensor]) -> None:
    """Restore step, parameters, optimiser state, moving averages and loss scaler from ``training_state``.

    The validation losses up to the step come from the event log.
    """
    session.step = int(state["step"])
    logged = progress.read(session.run).validation
    session.validation_losses = {step: loss for step, loss in logged.items() if step <= session.step}
    moments = session.optimizer.state
    with torch.no_grad():
        for key, parameter in session.parameters.items():
            parameter.copy_(state[f"parameter/{key}"])
            moments[parameter] = {}
    for name, value in state.items():
        if name.startswith("moment/"):
            _, moment, key = name.split("/", 2)
            parameter = session.parameters[key]
            is_number = value.dim() == 0 and not value.is_floating_point()
            moments[parameter][moment] = value.item() if is_number else value.to(parameter.device)
        if name.startswith("group/"):
            _, number, what = name.split("/")
            session.optimizer.param_groups[int(number)][what] = value.view(torch.float64).item()
    for key, average in session.moving_averages.items():
        average.copy_(state[f"average/{key}"])
    if scaler := session.accelerator.scaler:
        scaler.load_state_dict({key: state[f"scaler/{key}"].item() for key in scaler.state_dict()})


def write_adapter(session: Session, path: Path) -> None:
    """Write the adapter to a file: its average, if the run has one, else its current values."""
    config, models = session.config, session.trained_components
    fields = {"preset", "steps", "batch_size", "learning_rate", "prior_loss_weight", "resolution", "seed"}
    info = adapter_file.attached_info(
        models,
        config.name,
        fingerprint=session.fingerprint,
        base=base_name_of(session.pipe),
        targets=config.targets,
        **subject_fields(config),
        **noise.process_settings(session.pipe.scheduler),
        training={
            "step": session.step,
            "photos": sum(len(cache.mean) for cache in session.photos),
            **({"init_sha256": session.init_sha256} if session.init_sha256 else {}),
            "seconds": session.timer.seconds(),
            "memory": peak_memory(str(session.accelerator.device)),
            **config.model_dump(mode="json", include=fields),
        },
    )
    with averaged(session):
        adapter_file.save(path, models, info)


@contextlib.contextmanager
def averaged(session: Session) -> Iterator[None]:
    """Within the block, the adapter's parameters have their averages, if the run or its optimiser keeps any."""
    if not session.moving_averages and session.config.optimizer != "schedule-free-adamw":
        yield
        return
    current = {key: parameter.detach().clone() for key, parameter in session.parameters.items()}
    session.optimizer.eval()  # the averages of a schedule-free optimiser; others have no such mode
    _assign(session.parameters, session.moving_averages)
    try:
        yield
    finally:
        session.optimizer.train()
        _assign(session.parameters, current)


def _assign(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for key, value in values.items():
            parameters[key].copy_(value)
