"""Optimizer, learning rate and length of the training."""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator


class OptimizationSettings(BaseModel):
    """Optimizer, learning rate and length of the training."""

    steps: int = Field(ge=1, le=100_000, description="Number of optimizer steps.")
    batch_size: int = Field(ge=1, le=64, description="Photos per batch, on each device.")
    gradient_accumulation_steps: int = Field(1, ge=1, le=64, description="Batches per optimizer step.")
    optimizer: Literal[
        "adamw", "adamw8bit", "paged-adamw", "paged-adamw8bit", "lion", "lion8bit", "adafactor", "prodigy",
        "schedule-free-adamw",
    ] = Field(
        "adamw",
        description="AdamW; with its state in 8 bits or paged to the computer's memory (these and Lion require "
        "bitsandbytes); Adafactor; Prodigy, which finds the learning rate; AdamW that averages the weights instead of "
        "decaying the rate (both require the extra optimizers).",
    )  # fmt: skip
    learning_rate: float = Field(gt=0, le=1, description="Peak learning rate; for Prodigy a factor, 1.")
    lora_plus_ratio: float = Field(
        1.0, ge=1, le=64, description="Learning rate of LoRA's up matrices, relative to the others (LoRA+). 1: equal."
    )
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        description="Learning rate after the warmup: constant, or linear or cosine decay to 0."
    )
    lr_warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises to its peak.")
    weight_decay: float = Field(ge=0, le=1, description="Weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Norm to which gradients are clipped.")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="Decay of the exponential moving average of the weights. 0 disables it."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of all random numbers.")

    @model_validator(mode="after")
    def _check_averages(self) -> Self:
        if self.optimizer == "schedule-free-adamw" and self.ema_decay:
            raise ValueError("schedule-free-adamw averages the weights itself: use ema_decay 0")
        return self
