"""Tests of docs/scale.md."""

import pytest

import hra_diffusion as hra
from benchmarks import scale
from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.methods import COMPARED
from hra_diffusion.models.families.architectures import SD1


def test_the_page_is_up_to_date():
    assert scale.page() == scale.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("method", COMPARED)
def test_computed_sizes_are_those_of_an_adapter(tmp_path, monkeypatch, pipe, method):
    """On a small base, whose layers take the place of a released one's."""
    monkeypatch.setattr(SD1.__class__, "build_denoiser", lambda self: pipe.unet)
    scale.layer_shapes.cache_clear()
    size = scale.size_of(SD1, "sd1", method)
    scale.layer_shapes.cache_clear()
    attachment.attach(pipe.unet, method, {"rank": size.rank})
    hra.save(pipe, tmp_path / "adapter.safetensors", "default")
    header = int.from_bytes((tmp_path / "adapter.safetensors").read_bytes()[:8], "little")
    assert (tmp_path / "adapter.safetensors").stat().st_size - header - 8 == pytest.approx(
        4 * size.parameters, rel=0.05
    )
