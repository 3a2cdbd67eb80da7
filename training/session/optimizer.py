"""The optimiser of a run and its learning rate."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hra_diffusion.libraries import import_bitsandbytes
from training import objective
from training.config import TrainConfig
from training.errors import TrainingError
from training.session.state import Session


def make_optimizer(config: TrainConfig, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW as the configuration says. Raises TrainingError where it asks for a package that is missing.

    ``part`` of a group of parameters: what part of the learning rate they take.
    """
    parts = {key: 1.0 if key.startswith("unet.") else config.text_encoder_lr_scale for key in parameters}
    groups = [
        {"params": [parameters[key] for key in parameters if parts[key] == part], "part": part}
        for part in dict.fromkeys(parts.values())
    ]
    common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        # the loss scaler of float16 can't tell whether a fused optimiser skipped its step
        return torch.optim.AdamW(groups, fused=config.mixed_precision != "fp16", **common)
    try:
        optimizers = import_bitsandbytes().optim
    except ImportError:
        raise TrainingError("--optimizer adamw8bit needs bitsandbytes: pip install 'hra-diffusion[8bit]'") from None
    return optimizers.AdamW8bit(groups, **common)


def rate(session: Session) -> float:
    """The learning rate of the step to come."""
    config = session.config
    step = min(session.step, config.steps - 1)
    return config.learning_rate * objective.learning_rate_factor(
        step, config.steps, config.lr_warmup_steps, config.lr_scheduler
    )
