"""Device, precision, memory and speed."""

import re
from typing import Literal

from pydantic import BaseModel, Field, field_validator


class ExecutionSettings(BaseModel):
    """Device, precision, memory and speed."""

    device: str | None = Field(
        None,
        pattern=r"^(cpu|mps|cuda(:\d{1,3})?)$",
        description="Device to train on: cpu, mps, cuda or, of several GPUs, such as cuda:1. By default the fastest.",
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Precision of autocast arithmetic.")
    memory_limit: str | None = Field(
        None,
        description='Memory that training may use, such as "8GB". Settings that save memory are enabled until it fits.',
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third slower."
    )
    sample_batch_size: int = Field(8, ge=1, le=8, description="Class images or samples generated at once.")
    cuda_graph: Literal["auto", "off"] = Field(
        "auto",
        description="On CUDA, launch each step as one graph if a check at the start finds its results equal (auto).",
    )
    compile: bool = Field(
        False,
        description="Compile the denoiser's transformer blocks with torch.compile. The first step may take minutes.",
    )
    log_every: int | None = Field(
        None, ge=1, le=1000, description="Steps between two readings of the loss. By default 1 on a CPU, 10 on a GPU."
    )

    @field_validator("memory_limit")
    @classmethod
    def _check_memory_limit(cls, limit: str | None) -> str | None:
        if limit is not None and not re.fullmatch(r"\d{1,4}(\.\d{1,2})?GB", limit := limit.replace(" ", "").upper()):
            raise ValueError('give an amount of memory such as "8GB"')
        return limit
