"""Tests of shards of training data."""

from pathlib import Path

from toybox.rendering import IMAGE_SIZE
from toybox.shards import load_shards, render_missing, render_shard


def test_shards_are_deterministic_and_rendered_once(sprites: Path, tmp_path: Path) -> None:
    """A shard depends on its number alone; existing ones are kept."""
    assert render_shard(sprites, 1, 3).values.equal(render_shard(sprites, 1, 3).values)
    render_missing(sprites, tmp_path, range(1), 2)
    before = (tmp_path / "00000.safetensors").stat().st_mtime_ns
    render_missing(sprites, tmp_path, range(3), 2)  # two at once
    assert (tmp_path / "00000.safetensors").stat().st_mtime_ns == before
    assert load_shards(tmp_path).values.shape == (6, IMAGE_SIZE, IMAGE_SIZE, 3)
