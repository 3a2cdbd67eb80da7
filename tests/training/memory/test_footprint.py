"""Predicted memory of a run."""

import pytest
import torch
from conftest import tiny_pipe, tiny_xl_pipe

from hra_diffusion.models.meta import meta_pipeline
from training.memory.footprint import module_bytes, predict_footprint
from training.memory.passes import training_peak
from training.session.model import add_adapter


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True, "method": "shoft"}], ids=["plain", "lean"])
@pytest.mark.parametrize("make", [tiny_pipe, tiny_xl_pipe])
def test_peak_on_meta_is_close_to_the_peak_on_cpu(settings, make, changes):
    """Both are counted by the same meter."""
    config, peaks = settings(**changes), []
    for pipe in (make(), meta_pipeline(make())):
        add_adapter(config, pipe)
        peaks.append(training_peak(config, pipe, 64))
    real, predicted = peaks
    assert predicted == pytest.approx(real, rel=0.03), "some kernels allocate a workspace, which meta does not show"


def test_settings_that_save_memory_reduce_the_prediction(settings):
    peaks = {}
    for label, changes in {
        "plain": {},
        "checkpointing": {"gradient_checkpointing": True},
        "half a batch": {"batch_size": 4},
        "bfloat16": {"dtype": "bfloat16"},
        "int8": {"base_weights": "int8"},
        "frozen text": {"train_text_encoder": False},
    }.items():
        config = settings(**{"batch_size": 8, "prior_loss_weight": 0, "resolution": 256} | changes)
        peaks[label] = predict_footprint(config, "cuda").phases["train"]
    assert all(peaks[label] < peaks["plain"] for label in peaks if label != "plain"), peaks
    assert peaks["half a batch"] - peaks["checkpointing"] > 0, "most of the memory are activations here"


def test_base_output_preservation_generates_no_class_images(settings):
    images, output = (
        predict_footprint(settings(preservation=kind), "cpu").phases for kind in ("class-images", "base-output")
    )
    assert images.keys() - output.keys() == {"class images"} and images["train"] == output["train"]


@pytest.mark.filterwarnings("ignore:memory is predicted with the sizes of FLUX.2 klein base 4B")  # which is right
def test_attention_of_flux2_counts_as_fused(settings):
    """Its matrices of 4,608² in every layer would take 63 GB more."""
    shapes = meta_pipeline("black-forest-labs/FLUX.2-klein-base-4B", torch.bfloat16)
    config = settings(train_text_encoder=False, batch_size=1, prior_loss_weight=0, dtype="bfloat16")
    add_adapter(config, shapes)
    assert module_bytes(shapes.transformer) + training_peak(config, shapes, 1024) < 40e9
