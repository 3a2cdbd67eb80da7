"""Shards: the world's training pictures on disk, rendered ahead, and their latents once an autoencoder is there.

Shard `k` is drawn from the seed (WORLD_SEED, k), so it is the same wherever and whenever it is made. Labels travel with
it; captions are drawn anew at every use.
"""

import json
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hra_diffusion.files import atomic_path
from toybox.patches import PATCH
from toybox.scenes import SCENES
from toybox.world import HELD_OUT, Label, draw_labels, expose, is_unseen, photograph

WORLD_SEED = 20_25
SHARD_SIZE = 1024


@dataclass(frozen=True)
class Shard:
    """`values[i]` shows `labels[i]`: pictures as uint8 (N, H, W, 3), or latents as float16 (N, C, h, w).

    `covers[i]` says how much of each of a picture's 8×8 patches things take: uint8 (N, H/8, W/8); none where unknown.
    """

    values: Tensor
    labels: list[Label]
    covers: Tensor | None = None


def stack(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as uint8: RGB (N, H, W, 3), L (N, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))


def shard_path(folder: Path, index: int) -> Path:
    """Where shard `index` lies in a folder of shards."""
    return folder / f"{index:05d}.safetensors"


def save_shard(shard: Shard, path: Path) -> None:
    """Write one shard, whole or not at all."""
    with atomic_path(path) as unfinished:
        save_file(
            {"values": shard.values.contiguous()} | ({} if shard.covers is None else {"covers": shard.covers}),
            unfinished,
            metadata={"labels": json.dumps([astuple(label) for label in shard.labels])},
        )


def load_shard(path: Path) -> Shard:
    """Read what `save_shard` wrote."""
    with safe_open(path, framework="pt") as file:
        labels = [Label(*values) for values in json.loads(file.metadata()["labels"])]
        covers = file.get_tensor("covers") if "covers" in file.keys() else None  # noqa: SIM118 - no mapping
        return Shard(file.get_tensor("values"), labels, covers)


def load_shards(folder: Path, limit: int | None = None) -> Shard:
    """The shards of a folder (the first `limit`) joined to one; raises FileNotFoundError when there is none."""
    shards = [load_shard(path) for path in sorted(folder.glob("*.safetensors"))[:limit]]
    if not shards:
        raise FileNotFoundError(f"no shards in {folder}: make them with the stages `render` and then `encode`")
    covers = [shard.covers for shard in shards if shard.covers is not None]
    return Shard(
        torch.cat([shard.values for shard in shards]),
        [label for shard in shards for label in shard.labels],
        torch.cat(covers) if len(covers) == len(shards) else None,
    )


def without_unseen(shard: Shard) -> Shard:
    """The shard without the pictures that the base may not learn from."""
    kept = [index for index, label in enumerate(shard.labels) if not is_unseen(label)]
    covers = None if shard.covers is None else shard.covers[kept]
    return Shard(shard.values[kept], [shard.labels[index] for index in kept], covers)


def render_shard(sprites: Path, index: int, size: int = SHARD_SIZE) -> Shard:
    """Draw shard `index` with the sprites in a folder: `size` pictures."""
    rng = np.random.default_rng((WORLD_SEED, index))
    labels = draw_labels(rng, size)
    pictures, covered = zip(*(expose(sprites, label, rng) for label in labels), strict=True)
    return Shard(stack(pictures), labels, stack([where.reduce(PATCH) for where in covered]))


def render_held_out(sprites: Path) -> Shard:
    """One picture of every held-out thing in every fourth scene: what no training has seen."""
    labels = [Label(thing.name, phrase) for thing in HELD_OUT for phrase in list(SCENES)[::4]]
    return Shard(stack([photograph(sprites, label, seed) for seed, label in enumerate(labels)]), labels)


def render_missing(sprites: Path, folder: Path, indices: Iterable[int], size: int = SHARD_SIZE) -> None:
    """Draw those shards among `indices` that `folder` does not have yet."""
    missing = [index for index in indices if not shard_path(folder, index).exists()]
    # a process that has trained has threads, which a forked child would wait for: each worker starts afresh
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(partial(_render_to, sprites, folder, size), missing):
            pass


def _render_to(sprites: Path, folder: Path, size: int, index: int) -> None:
    save_shard(render_shard(sprites, index, size), shard_path(folder, index))
