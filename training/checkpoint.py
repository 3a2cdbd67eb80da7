"""Checkpoints: a usable adapter, and everything the next step depends on."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hra_diffusion import adapter_file
from training import runs
from training.events import Checkpoint
from training.session import Session


def keep(session: Session) -> None:
    """Save a checkpoint: a usable adapter, and all that is needed to go on exactly."""
    if session.accelerator.is_main_process:
        folder = session.run.checkpoint(session.step)
        runs.write_checkpoint(folder, lambda path: write_adapter(session, path), training_state(session))
        session.run.write_state("running", session.step, session.config.steps)
        session.clock.emit(Checkpoint(session.step, str(folder / "adapter.safetensors")))
    session.accelerator.wait_for_everyone()


def training_state(session: Session) -> dict[str, Tensor]:
    """Parameters, AdamW's moments and the averages, by file key."""
    state = {"step": torch.tensor(session.step)}
    moments = session.optimizer.state
    for key, parameter in session.parameters.items():
        state[f"parameter/{key}"] = parameter
        state |= {f"{moment}/{key}": moments[parameter][moment] for moment in ("exp_avg", "exp_avg_sq")}
    return state | {f"average/{key}": average for key, average in session.averages.items()}


def restore(session: Session, folder: Path) -> None:
    """Go back to a checkpoint: everything the next step depends on."""
    state = load_file(folder / "training.safetensors")
    session.step = int(state["step"])
    moments = session.optimizer.state
    with torch.no_grad():
        for key, parameter in session.parameters.items():
            parameter.copy_(state[f"parameter/{key}"])
            moments[parameter] = {
                "step": torch.tensor(float(session.step), device=parameter.device),
                **{m: state[f"{m}/{key}"].to(parameter.device) for m in ("exp_avg", "exp_avg_sq")},
            }
    for key, average in session.averages.items():
        average.copy_(state[f"average/{key}"])


def write_adapter(session: Session, path: Path) -> None:
    """Write the adapter as it is now (its moving average, where one is kept) as a usable file."""
    config, models = session.config, session.trained
    info = adapter_file.AdapterInfo(
        name=config.name,
        method=config.method,
        options=config.adapter_options().model_dump(),
        base=session.pipe.base_name,
        fingerprint=adapter_file.fingerprint(models, config.name),
        targets=config.targets,
        trigger=config.trigger,
        class_noun=config.class_noun,
        training={
            "step": session.step,
            "photos": len(session.photos.mean),
            "seconds": session.clock.phases,
            **config.model_dump(
                mode="json", include={"preset", "steps", "batch_size", "learning_rate", "prior_weight", "seed"}
            ),
        },
    )
    adapter_file.save(path, models, info, session.averages or None)


@contextlib.contextmanager
def averaged(session: Session) -> Iterator[None]:
    """Within the block the adapter's parameters are their moving averages, where these are kept."""
    kept = {key: session.parameters[key].detach().clone() for key in session.averages}
    _assign(session.parameters, session.averages)
    yield
    _assign(session.parameters, kept)


def _assign(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for key, value in values.items():
            parameters[key].copy_(value)
