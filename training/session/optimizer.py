"""The optimiser of a run and its learning rate."""

import contextlib
import importlib
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hra_diffusion.adapters import registry
from hra_diffusion.adapters.token_embeddings import PARAMETER
from hra_diffusion.libraries import BITSANDBYTES, import_bitsandbytes
from training import objective
from training.config import TrainConfig
from training.errors import TrainingError
from training.session.state import Session


class Library(NamedTuple):
    """An optimiser in another package.

    Attributes:
        module, name: where its class is.
        extra: the extra of this package that installs it; "" if it is always there.
        options: arguments of the class beside learning rate and weight decay.
    """

    module: str
    name: str
    extra: str
    options: dict[str, Any] = {}  # noqa: RUF012 (of a named tuple)


LIBRARIES = {
    "adamw8bit": Library(BITSANDBYTES, "AdamW8bit", "8bit"),
    "paged-adamw": Library(BITSANDBYTES, "PagedAdamW", "8bit"),
    "paged-adamw8bit": Library(BITSANDBYTES, "PagedAdamW8bit", "8bit"),
    "lion": Library(BITSANDBYTES, "Lion", "8bit"),
    "lion8bit": Library(BITSANDBYTES, "Lion8bit", "8bit"),
    # the learning rate is that of the run, not one that decays or follows the parameters' size
    "adafactor": Library(
        "transformers.optimization", "Adafactor", "", {"scale_parameter": False, "relative_step": False}
    ),
    # from the library's d0 of 1e-6 and with bias correction it hardly moves within 150 steps (benchmarks/bench_prodigy)
    "prodigy": Library("prodigyopt", "Prodigy", "optimizers", {"d0": 1e-5, "safeguard_warmup": True}),
    "schedule-free-adamw": Library("schedulefree", "AdamWScheduleFree", "optimizers"),
}
"""The optimisers other than PyTorch's AdamW."""
GROUP_STATE = ("k", "d", "d_max", "d_numerator", "weight_sum", "lr_max")
"""Numbers that steps of Prodigy and schedule-free AdamW change in the parameter groups, not in the state."""
LOW_PRODIGY_RATE = 0.1
"""Learning rate below which a run with Prodigy emits a notice."""


def check_optimizer(config: TrainConfig, device: torch.device) -> None:
    """Raise TrainingError if the optimiser can't be used: a package, a GPU or the layers for a setting are missing."""
    if config.optimizer in LIBRARIES:
        optimizer_class(config.optimizer)
    if config.optimizer.startswith("paged") and device.type != "cuda":
        raise TrainingError(f"--optimizer {config.optimizer} needs an NVIDIA GPU; use adamw or adamw8bit")
    method = registry.get_method(config.method)
    if config.lora_plus_ratio != 1 and "up" not in method.shapes(method.parse(config.options), 256, 256):
        raise TrainingError(f"--lora-plus-ratio is for methods with up and down matrices; {config.method} has none")
    scaled = config.lora_plus_ratio != 1 or (config.train_text_encoder and config.text_encoder_lr_scale != 1)
    if config.optimizer == "prodigy" and scaled:
        raise TrainingError(
            "Prodigy finds one learning rate for all parameters; use --text-encoder-lr-scale 1 and --lora-plus-ratio 1"
        )


def optimizer_notices(config: TrainConfig) -> list[str]:
    """Return notices about a learning rate that suits another optimiser."""
    if config.optimizer == "prodigy" and config.learning_rate < LOW_PRODIGY_RATE:
        return [f"Prodigy multiplies the rate that it finds by --learning-rate {config.learning_rate:g}; 1 is usual"]
    return []


def optimizer_class(name: str) -> Any:
    """Return the class of an optimiser in ``LIBRARIES``. Raises TrainingError if its package is missing."""
    library = LIBRARIES[name]
    try:
        module = (
            import_bitsandbytes().optim if library.module == BITSANDBYTES else importlib.import_module(library.module)
        )
    except ImportError:
        raise TrainingError(
            f"--optimizer {name} needs {library.module}: pip install 'hra-diffusion[{library.extra}]'"
        ) from None
    return getattr(module, library.name)


def make_optimizer(
    config: TrainConfig, parameters: Mapping[str, nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimiser, with one parameter group per learning rate, without frozen parameters.

    The key ``lr_scale`` of a group is its factor on the learning rate. On CUDA, fused AdamW reads its learning rates
    from the device, so that a step can be captured. Raises TrainingError if a package is missing.
    """
    scales = {key: learning_rate_scale(config, key) for key, value in parameters.items() if value.requires_grad}
    groups = [
        {"params": [parameters[key] for key in scales if scales[key] == scale], "lr_scale": scale}
        for scale in dict.fromkeys(scales.values())
    ]
    common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        # with a fused optimiser the float16 loss scaler can't tell whether a step was skipped
        fused = config.mixed_precision != "fp16"
        capturable = fused and device.type == "cuda"
        if capturable:
            groups = [group | {"lr": torch.tensor(config.learning_rate, device=device)} for group in groups]
        return torch.optim.AdamW(groups, fused=fused, capturable=capturable, **common)
    with contextlib.redirect_stdout(io.StringIO()):  # Prodigy prints that it uses weight decay
        optimizer = optimizer_class(config.optimizer)(groups, **common, **LIBRARIES[config.optimizer].options)
    if config.optimizer == "schedule-free-adamw":
        optimizer.train()
    return optimizer


def learning_rate_scale(config: TrainConfig, key: str) -> float:
    """Return the factor on the learning rate of a parameter, given by its key in the adapter file.

    LoRA+ (arXiv 2402.12354) gives the up matrices a higher rate.
    """
    if key.endswith(f".{PARAMETER}"):
        return config.trigger_lr_scale
    component = config.text_encoder_lr_scale if key.startswith("text_encoder") else 1.0
    return component * (config.lora_plus_ratio if key.endswith(".up") else 1.0)


def found_learning_rate(optimizer: Any) -> float:
    """Return the factor on the learning rate that Prodigy has found; 1 for other optimisers."""
    return optimizer.param_groups[0].get("d", 1.0)


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Set the learning rate of the next step, scaled for each parameter group."""
    for group in optimizer.param_groups:
        scaled = learning_rate * group["lr_scale"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


def current_learning_rate(session: Session) -> float:
    """Return the learning rate of the next step."""
    config = session.config
    step = min(session.step, config.steps - 1)
    return config.learning_rate * objective.learning_rate_factor(
        step, config.steps, config.lr_warmup_steps, config.lr_scheduler
    )
