"""The released models on the meta device: numbers of parameters, and layers that take adapters."""

import json

import pytest

from hra_diffusion.adapters import targets
from hra_diffusion.models.families.architectures import SD1, SD2, SDXL, on_meta


def million_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("architecture", "unet", "vae", "encoders"),
    [(SD1, 859.5, 83.7, [123.1]), (SD2, 865.9, 83.7, [340.4]), (SDXL, 2567.5, 83.7, [123.1, 694.7])],
    ids=["sd1", "sd2", "sdxl"],
)
def test_parameters_in_millions(architecture, unet, vae, encoders):
    assert million_parameters(on_meta(architecture.build_denoiser)) == pytest.approx(unet, abs=0.05)
    assert million_parameters(on_meta(architecture.build_vae)) == pytest.approx(vae, abs=0.05)
    assert [million_parameters(e) for e in on_meta(architecture.build_encoders)] == pytest.approx(encoders, abs=0.05)


def test_attention_layers_of_sd15_and_parameters_of_adapters():
    """Published counts: 128 linears; LoRA r4 797,184; HRA r8 795,648; HOFT r4 as LoRA; SHOFT r4 897,024."""
    unet = on_meta(SD1.build_denoiser)
    paths = targets.find_targets(unet)
    assert len(paths) == 128
    shapes = [unet.get_submodule(path).weight.shape for path in paths]
    d_in, d_out = sum(shape[1] for shape in shapes), sum(shape[0] for shape in shapes)
    assert (d_in, d_out) == (99_456, 99_840)
    assert (4 * (d_in + d_out), 8 * d_in, 4 * (d_in + d_out) + d_out) == (797_184, 795_648, 897_024)


@pytest.mark.parametrize("architecture", [SD1, SDXL], ids=["sd1", "sdxl"])
def test_the_written_configuration_includes_defaults(architecture, tmp_path):
    """from_single_file does not fill them in."""
    architecture.write(tmp_path)
    for name, build in (("unet", architecture.build_denoiser), ("vae", architecture.build_vae)):
        written = json.loads((tmp_path / name / "config.json").read_text())
        assert written.keys() >= {key for key in on_meta(build).config if not key.startswith("_")}
        assert written["layers_per_block"] == 2
