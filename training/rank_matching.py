"""Count the trainable parameters of adapters, and match the ranks of methods by their parameter counts."""

from __future__ import annotations

import bisect
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hra_diffusion.adapters import registry, targets
from hra_diffusion.adapters.linear_map import matrix_shape
from hra_diffusion.errors import UserError
from hra_diffusion.models import families
from training.config import TrainConfig

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Shapes = Counter[tuple[int, int]]
"""Number of layers by weight shape (d_out, d_in)."""


def layers_to_adapt(config: TrainConfig, pipe: StableDiffusionPipeline) -> list[tuple[nn.Module, list[str]]]:
    """Return the models to train, each with the paths of the layers to adapt.

    Raises UserError if the base model has no layers that match ``config.targets``.
    """
    texts = families.text_targets(pipe) if config.train_text_encoder else {}
    unet_paths = targets.find_targets(pipe.unet, config.targets)
    return [(pipe.unet, unet_paths), *((getattr(pipe, name), paths) for name, paths in texts.items())]


def layer_shapes(pipe: StableDiffusionPipeline, config: TrainConfig) -> Shapes:
    """Count the layers to adapt by shape. Raises UserError as ``layers_to_adapt`` does."""
    return Counter(
        matrix_shape(targets.target_layer(model, path))
        for model, paths in layers_to_adapt(config, pipe)
        for path in paths
    )


def count_parameters(method: str, options: Mapping[str, Any], shapes: Shapes) -> int:
    """Return the number of trainable parameters of an adapter on layers of these shapes."""
    config: Any = registry.get_method(method).parse(dict(options))
    return sum(count * _layer_parameters(method, config, d_in, d_out) for (d_out, d_in), count in shapes.items())


def matched_rank(method: str, options: Mapping[str, Any], shapes: Shapes, parameters: int) -> int:
    """Return the rank at which the method comes closest to this number of parameters on layers of these shapes."""

    def count(rank: int) -> int:
        return count_parameters(method, {**options, "rank": rank}, shapes)

    ranks = _valid_ranks(method, options, min(min(shape) for shape in shapes))
    above = bisect.bisect_left(ranks, parameters, key=count)
    return min(ranks[max(0, above - 1) : above + 1], key=lambda rank: abs(count(rank) - parameters))


@functools.lru_cache(maxsize=4096)  # the page counts again at every change of the form
def _layer_parameters(method: str, config: Any, d_in: int, d_out: int) -> int:
    adapter = registry.get_method(method).build(config, d_in, d_out, torch.Generator())
    return sum(parameter.numel() for parameter in adapter.parameters())


def _valid_ranks(method: str, options: Mapping[str, Any], largest: int) -> Sequence[int]:
    """Return the ranks up to ``largest`` that the method accepts, ascending."""
    valid = []
    for rank in range(1, largest + 1):
        try:
            registry.get_method(method).parse({**options, "rank": rank})
        except UserError:
            continue
        valid.append(rank)
    return valid
