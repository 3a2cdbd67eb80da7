"""Count the trainable parameters of adapters, and match the ranks of methods by their parameter counts."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from hra_diffusion.adapters import registry, targets
from hra_diffusion.adapters.linear_map import matrix_shape
from hra_diffusion.errors import UserError, shown
from hra_diffusion.models import families
from hra_diffusion.patterns import compile_pattern
from training.config import TrainConfig

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Shapes = Counter[tuple[int, int, int | None]]
"""Number of layers by weight shape and rank (d_out, d_in, rank). The rank is None if it is that of the options."""


LayerRanks = dict[str, int | None]
"""Layers by their path, with the rank that ``TrainConfig.ranks`` gives them, or None."""


def layers_to_adapt(config: TrainConfig, pipe: StableDiffusionPipeline) -> list[tuple[nn.Module, LayerRanks]]:
    """Return the models to train, each with the layers to adapt.

    Raises UserError if a pattern is malformed or matches no layer, if the method does not have such a rank, or if
    every layer of a model is excluded.
    """
    texts = families.text_targets(pipe) if config.train_text_encoder else {}
    denoiser = families.denoiser(pipe)
    found = [(denoiser, targets.find_targets(denoiser, config.targets))]
    found += [(getattr(pipe, name), paths) for name, paths in texts.items()]
    excluded = _matches(config.exclude, "exclude", found) if config.exclude else set()
    ranks: dict[tuple[int, str], int] = {}
    for pattern, rank in reversed(config.ranks.items()):
        registry.get_method(config.method).parse({**config.options, "rank": rank})
        ranks |= dict.fromkeys(_matches(pattern, "ranks", found), rank)
    layers = [
        (model, {path: ranks.get((number, path)) for path in paths if (number, path) not in excluded})
        for number, (model, paths) in enumerate(found)
    ]
    for model, remaining in layers:
        if not remaining:
            raise UserError(f"exclude: {shown(config.exclude)} matches every target of {type(model).__name__}")
    return layers


def _matches(pattern: str, field: str, found: Sequence[tuple[nn.Module, list[str]]]) -> set[tuple[int, str]]:
    """Return the number of the model and the path of all target layers whose whole path matches ``pattern``."""
    try:
        matching = compile_pattern(pattern)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    matches = {(number, path) for number, (_, paths) in enumerate(found) for path in paths if matching.fullmatch(path)}
    if not matches:
        raise UserError(
            f"{field}: {shown(pattern)} matches no target; use a regular expression for paths like {found[0][1][0]}"
        )
    return matches


def layer_shapes(pipe: StableDiffusionPipeline, config: TrainConfig) -> Shapes:
    """Count the layers to adapt by shape and rank. Raises UserError as ``layers_to_adapt`` does."""
    return Counter(
        (*matrix_shape(targets.target_layer(model, path)), rank)
        for model, ranks in layers_to_adapt(config, pipe)
        for path, rank in ranks.items()
    )


def count_parameters(method: str, options: Mapping[str, Any], shapes: Shapes) -> int:
    """Return the number of trainable parameters of an adapter on layers of these shapes."""
    config: Any = registry.get_method(method).parse(dict(options))
    return sum(
        count * _layer_parameters(method, config.model_copy(update={"rank": rank or config.rank}), d_in, d_out)
        for (d_out, d_in, rank), count in shapes.items()
    )


def matched_rank(method: str, options: Mapping[str, Any], shapes: Shapes, parameters: int) -> int:
    """Return the rank at which the method comes closest to this number of parameters on layers of these shapes."""

    def count(rank: int) -> int:
        return count_parameters(method, {**options, "rank": rank}, shapes)

    ranks = _valid_ranks(method, options, shapes)
    above = bisect.bisect_left(ranks, parameters, key=count)
    return min(ranks[max(0, above - 1) : above + 1], key=lambda rank: abs(count(rank) - parameters))


def _layer_parameters(method: str, config: Any, d_in: int, d_out: int) -> int:
    return registry.get_method(method).trainable_values(config, d_in, d_out)


def _valid_ranks(method: str, options: Mapping[str, Any], shapes: Shapes) -> Sequence[int]:
    """Return the ranks that the method accepts for layers of these shapes, ascending."""
    valid = []
    for rank in range(1, min(min(d_out, d_in) for d_out, d_in, _ in shapes) + 1):
        try:
            config = registry.get_method(method).parse({**options, "rank": rank})
        except UserError:
            continue
        if not any(config.misfit(d_in, d_out) for d_out, d_in, _ in shapes):
            valid.append(rank)
    return valid
