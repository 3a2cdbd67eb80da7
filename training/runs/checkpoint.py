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
from training.runs.events import Checkpoint, Notice
from training.runs.identity import Identity, PhotoRecord
from training.runs.run_folder import RunError
from training.session.state import Session


def save_checkpoint(session: Session) -> None:
    """Save the adapter and the state of training at the current step, on the main process."""
    if session.accelerator.is_main_process:
        session.run.require_lease()
        folder = session.run.checkpoint_folder(session.step)
        with atomic_path(folder) as unfinished:
            identity = Identity(session.config, [PhotoRecord.of(photo) for photo in session.dataset.photos])
            metadata = identities.metadata(identity)
            save_tensors(unfinished / "training.safetensors", training_state(session), metadata, checksum=True)
            write_adapter(session, unfinished / "adapter.safetensors")
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
    scaler = session.accelerator.scaler.state_dict() if session.accelerator.scaler else {}
    return state | {f"scaler/{key}": torch.tensor(value) for key, value in scaler.items()}


def restore_latest(session: Session) -> None:
    """Restore the newest whole checkpoint.

    Raises RunError if there is none, or if the number of processes has changed.
    """
    for folder in reversed(session.run.checkpoints()):
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
    path = folder / "training.safetensors"
    with safe_open(path, "pt") as file:
        if has_changed(path, file.metadata() or {}, {identities.KEY}):
            raise ValueError(f"{path.name} does not match its checksum")
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    expected = training_state(session)  # its moments may be missing before the first step
    needed = {key for key in expected if not key.startswith("moment/")}
    for key in needed | {key for key in state if key.startswith("parameter/")}:
        if key not in needed or key not in state or state[key].shape != expected[key].shape:
            raise ValueError(f"{path.name} does not hold {key} as this run needs it")
    return state


def restore(session: Session, state: Mapping[str, Tensor]) -> None:
    """Restore step, parameters, optimiser state, moving averages and loss scaler from ``training_state``."""
    session.step = int(state["step"])
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
    for key, average in session.moving_averages.items():
        average.copy_(state[f"average/{key}"])
    if scaler := session.accelerator.scaler:
        scaler.load_state_dict({key: state[f"scaler/{key}"].item() for key in scaler.state_dict()})


def write_adapter(session: Session, path: Path) -> None:
    """Write the current adapter, or its moving average if the run has one, to a file."""
    config, models = session.config, session.trained_components
    fields = {"preset", "steps", "batch_size", "learning_rate", "prior_loss_weight", "resolution", "seed"}
    info = adapter_file.attached_info(
        models,
        config.name,
        fingerprint=session.fingerprint,
        base=base_name_of(session.pipe),
        targets=config.targets,
        trigger=config.trigger,
        class_noun=config.class_noun,
        **noise.process_settings(session.pipe.scheduler),
        training={
            "step": session.step,
            "photos": len(session.dataset.photos),
            "seconds": session.timer.seconds(),
            "memory": peak_memory(str(session.accelerator.device)),
            **config.model_dump(mode="json", include=fields),
        },
    )
    adapter_file.save(path, models, info, session.moving_averages or None)


@contextlib.contextmanager
def averaged(session: Session) -> Iterator[None]:
    """Within the block, the adapter's parameters have the values of their moving averages, if the run has any."""
    current = {key: session.parameters[key].detach().clone() for key in session.moving_averages}
    _assign(session.parameters, session.moving_averages)
    try:
        yield
    finally:
        _assign(session.parameters, current)


def _assign(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for key, value in values.items():
            parameters[key].copy_(value)
