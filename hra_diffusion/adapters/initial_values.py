"""Initial values that several methods share."""

import math

import torch
from torch import Generator, Tensor, nn


def kaiming_uniform(shape: tuple[int, int], generator: Generator) -> Tensor:
    """Kaiming-uniform values with a = √5 over the second dimension, as in LoRA, HRA and PEFT."""
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)
