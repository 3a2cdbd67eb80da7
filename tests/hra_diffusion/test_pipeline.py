"""Adapters on a pipeline: compatibility with the base model."""

import warnings

import pytest
from conftest import stir, tiny_pipe

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.errors import Note
from hra_diffusion.models.loading import load_base


def test_another_base_model_is_incompatible(adapter):
    info = read_info(adapter)
    assert pipeline.incompatibility(info, tiny_pipe()) == ""
    other = tiny_pipe(cross_attention_dim=32)
    stir(other.unet.parameters(), by=1.0)
    assert "weights differ" in pipeline.incompatibility(info, other)
    renamed = info.model_copy(update={"fingerprint": {"unet": {"no.such.layer": 0.1}}})
    assert "made for another base model" in pipeline.incompatibility(renamed, other)


def test_another_noise_process_is_incompatible(base_folder, tmp_path):
    pipe = load_base(str(base_folder), "cpu", prediction_type="v_prediction", rescale_zero_snr=True)
    attachment.attach(pipe.unet, "lora", {"rank": 2}, name="Rex")
    pipeline.save(pipe, tmp_path / "Rex.safetensors", "Rex")
    pipeline.unload(pipe, "Rex")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = pipeline.load(pipe, tmp_path / "Rex.safetensors")
    assert (info.prediction_type, info.zero_snr) == ("v_prediction", True)
    other = load_base(str(base_folder), "cpu")
    message = "trained on a base that predicts v_prediction with zero terminal SNR; this one predicts epsilon"
    with pytest.warns(Note, match=message):
        pipeline.load(other, tmp_path / "Rex.safetensors")
    assert message in pipeline.incompatibility(info, other) and pipeline.incompatibility(info, pipe) == ""
    older = info.model_copy(update={"prediction_type": "", "zero_snr": None})
    assert pipeline.incompatibility(older, other) == "", "older files do not record it"
