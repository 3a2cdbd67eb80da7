"""Class images for prior preservation."""

import numpy as np
from conftest import tiny_pipe
from PIL import Image

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
        list(load_class_images(pipe, "dog", 1, (16, 16), tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_invalid_cached_class_images_are_regenerated(tmp_path):
    pipe = tiny_pipe()
    good = [np.asarray(image, dtype=int) for image in load_class_images(pipe, "dog", 7, (16, 16), tmp_path)]
    (folder,) = tmp_path.iterdir()
    files = sorted(folder.iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-60])
    files[1].write_bytes(b"")
    Image.new("RGB", (32, 32)).save(files[2])
    broken = bytearray(files[3].read_bytes())
    broken[-30:-20] = b"\0" * 10
    files[3].write_bytes(broken)
    Image.new("RGB", (16, 16)).save(files[4])  # black, as earlier versions saved NaN
    stamps = {file: file.stat().st_mtime_ns for file in files[5:]}
    again = [np.asarray(image, dtype=int) for image in load_class_images(pipe, "dog", 7, (16, 16), tmp_path)]
    assert all(np.abs(new - old).mean() < 0.5 for new, old in zip(again, good, strict=True)), "up to float rounding"
    assert all(np.array_equal(Image.open(file), new) for file, new in zip(files, again, strict=True))
    assert {file: file.stat().st_mtime_ns for file in files[5:]} == stamps, "valid images are kept"
    assert sorted(folder.iterdir()) == files
