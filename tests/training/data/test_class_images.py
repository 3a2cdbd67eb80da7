"""Class images for prior preservation."""

from conftest import tiny_pipe

from hra_diffusion.adapters.quantization import quantise
from training.data.class_images import load_class_images
from training.loop import train


def test_class_images_are_generated_once_and_shared(settings, tmp_path):
    train(settings(name="a"), tmp_path)
    images = sorted((tmp_path / ".cache").rglob("*.png"))
    stamps = [image.stat().st_mtime_ns for image in images]
    train(settings(name="b", num_class_images=3), tmp_path)
    after = sorted((tmp_path / ".cache").rglob("*.png"))
    assert len(images) == 2 and len(after) == 3
    assert [image.stat().st_mtime_ns for image in after[:2]] == stamps


def test_a_quantised_base_has_its_own_class_images(tmp_path):
    full, quantised = tiny_pipe(), tiny_pipe()
    quantise(quantised.unet, "nf4")
    for pipe in (full, quantised):
        list(load_class_images(pipe, "dog", 1, 16, tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
