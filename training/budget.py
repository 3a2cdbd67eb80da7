"""Trainable parameters of an adapter, and the ranks at which several methods have about as many."""

from __future__ import annotations

import bisect
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hra_diffusion.adapters import registry, targets
from hra_diffusion.adapters.linear_map import as_matrix
from hra_diffusion.errors import UserError
from hra_diffusion.models import families
from training.config import TrainConfig

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Shapes = Counter[tuple[int, int]]
"""How many adapted layers have which (d_out, d_in)."""


def adapted_layers(config: TrainConfig, pipe: StableDiffusionPipeline) -> list[tuple[nn.Module, list[str]]]:
    """The models that learn, each with the paths of its layers to adapt. Raises UserError for targets it lacks."""
    texts = families.text_targets(pipe) if config.train_text_encoder else {}
    own = targets.find_targets(pipe.unet, config.targets)
    return [(pipe.unet, own), *((getattr(pipe, name), targets) for name, targets in texts.items())]


def layer_shapes(pipe: StableDiffusionPipeline, config: TrainConfig) -> Shapes:
    """The layers a run adapts. Raises UserError for targets this base does not have."""
    return Counter(
        tuple(as_matrix(model.get_submodule(path)).shape)
        for model, paths in adapted_layers(config, pipe)
        for path in paths
    )  # type: ignore[return-value]


def count(method: str, options: Mapping[str, Any], shapes: Shapes) -> int:
    """Trainable parameters of an adapter of this method on these layers."""
    config: Any = registry.get_method(method).parse(dict(options))
    return sum(number * _parameters(method, config, d_in, d_out) for (d_out, d_in), number in shapes.items())


@functools.lru_cache(maxsize=4096)  # a form asks the same at every change
def _parameters(method: str, config: Any, d_in: int, d_out: int) -> int:
    adapter = registry.get_method(method).build(config, d_in, d_out, torch.Generator())
    return sum(parameter.numel() for parameter in adapter.parameters())


def matched_rank(method: str, options: Mapping[str, Any], shapes: Shapes, budget: int) -> int:
    """The rank at which the method comes nearest to ``budget`` parameters on these layers."""
    ranks = _ranks(method, options, min(min(shape) for shape in shapes))
    above = bisect.bisect_left(ranks, budget, key=lambda rank: count(method, {**options, "rank": rank}, shapes))
    near = ranks[max(0, above - 1) : above + 1]
    return min(near, key=lambda rank: abs(count(method, {**options, "rank": rank}, shapes) - budget))


def _ranks(method: str, options: Mapping[str, Any], largest: int) -> Sequence[int]:
    """The ranks this method allows, up to what the smallest layer can hold."""
    found = []
    for rank in range(1, largest + 1):
        try:
            registry.get_method(method).parse({**options, "rank": rank})
        except UserError:
            continue
        found.append(rank)
    return found
