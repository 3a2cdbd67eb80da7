"""Shards of training data on disk: rendered images, and their latents.

Shard k is rendered with the seed (WORLD_SEED, k), so it is reproducible. It stores labels; captions are sampled from
them during training.
"""

import json
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hra_diffusion.evaluation.judge import stack
from hra_diffusion.files import atomic_path
from toybox.labels import Label, is_unseen, sample_labels
from toybox.objects import HELD_OUT
from toybox.patches import PATCH
from toybox.rendering import render_image, render_with_mask
from toybox.scenes import SCENES

WORLD_SEED = 20_25
SHARD_SIZE = 1024


@dataclass(frozen=True)
class Shard:
    """Images as uint8 (N, H, W, 3) or latents as float16 (N, C, h, w), with their N labels.

    ``coverage``: how much of each 8×8 patch objects cover, uint8 (N, H/8, W/8); None if unknown.
    """

    values: Tensor
    labels: list[Label]
    coverage: Tensor | None = None


def shard_path(folder: Path, index: int) -> Path:
    """Return the path of shard ``index``."""
    return folder / f"{index:05d}.safetensors"


def save_shard(shard: Shard, path: Path) -> None:
    """Write a shard atomically."""
    with atomic_path(path) as unfinished:
        save_file(
            {"values": shard.values.contiguous()} | ({} if shard.coverage is None else {"covers": shard.coverage}),
            unfinished,
            metadata={"labels": json.dumps([astuple(label) for label in shard.labels])},
        )


def load_shard(path: Path) -> Shard:
    """Read a shard."""
    with safe_open(path, framework="pt") as file:
        labels = [Label(*values) for values in json.loads(file.metadata()["labels"])]
        coverage = file.get_tensor("covers") if "covers" in file.keys() else None  # noqa: SIM118 - no mapping
        return Shard(file.get_tensor("values"), labels, coverage)


def load_shards(folder: Path, limit: int | None = None) -> Shard:
    """Concatenate the (first ``limit``) shards of a folder. Raises FileNotFoundError if there is none."""
    shards = [load_shard(path) for path in sorted(folder.glob("*.safetensors"))[:limit]]
    if not shards:
        raise FileNotFoundError(f"no shards in {folder}: make them with the stages `render` and then `encode`")
    coverage = [shard.coverage for shard in shards if shard.coverage is not None]
    return Shard(
        torch.cat([shard.values for shard in shards]),
        [label for shard in shards for label in shard.labels],
        torch.cat(coverage) if len(coverage) == len(shards) else None,
    )


def exclude_unseen(shard: Shard) -> Shard:
    """Remove the images of UNSEEN pairs from a shard."""
    kept = [index for index, label in enumerate(shard.labels) if not is_unseen(label)]
    coverage = None if shard.coverage is None else shard.coverage[kept]
    return Shard(shard.values[kept], [shard.labels[index] for index in kept], coverage)


def render_shard(sprites: Path, index: int, size: int = SHARD_SIZE) -> Shard:
    """Render shard ``index`` of ``size`` images with the sprites in a folder."""
    rng = np.random.default_rng((WORLD_SEED, index))
    labels = sample_labels(rng, size)
    images, masks = zip(*(render_with_mask(sprites, label, rng) for label in labels), strict=True)
    return Shard(stack(images), labels, stack([mask.reduce(PATCH) for mask in masks]))


def render_held_out(sprites: Path) -> Shard:
    """Render every held-out object in every fourth scene."""
    labels = [Label(entry.name, phrase) for entry in HELD_OUT for phrase in list(SCENES)[::4]]
    return Shard(stack([render_image(sprites, label, seed) for seed, label in enumerate(labels)]), labels)


def render_missing(sprites: Path, folder: Path, indices: Iterable[int], size: int = SHARD_SIZE) -> None:
    """Render the shards of ``indices`` that ``folder`` lacks."""
    missing = [index for index in indices if not shard_path(folder, index).exists()]
    render = partial(_render_to, sprites, folder, size)
    if len(missing) <= 1:  # a process takes longer to start than a small shard to render
        list(map(render, missing))
        return
    # spawn: a forked child of a process with OpenMP threads would deadlock
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(render, missing))


def _render_to(sprites: Path, folder: Path, size: int, index: int) -> None:
    save_shard(render_shard(sprites, index, size), shard_path(folder, index))
