"""The optimiser of a run and its learning rate."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.libraries import import_bitsandbytes
from training import objective
from training.config import TrainConfig
from training.errors import TrainingError
from training.session.state import Session


def make_optimizer(
    config: TrainConfig, parameters: Mapping[str, nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """Return AdamW, in 32 or 8 bits, with one parameter group per learning rate.

    The key ``lr_scale`` of a group is its factor on the learning rate. On CUDA, fused AdamW reads its learning rates
    from the device, so that a step can be captured. Raises TrainingError if bitsandbytes is missing.
    """
    scales = {key: 1.0 if key.startswith("unet.") else config.text_encoder_lr_scale for key in parameters}
    groups = [
        {"params": [parameters[key] for key in parameters if scales[key] == scale], "lr_scale": scale}
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
    try:
        optimizers = import_bitsandbytes().optim
    except ImportError:
        raise TrainingError("--optimizer adamw8bit needs bitsandbytes: pip install 'hra-diffusion[8bit]'") from None
    return optimizers.AdamW8bit(groups, **common)


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
