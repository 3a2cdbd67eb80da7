"""Size conditioning of Stable Diffusion XL, from the photos to the UNet, against diffusers."""

import numpy as np
import pytest
import torch
from conftest import tiny_xl_pipe
from PIL import Image, ImageOps

from training import config as configs
from training.data.dataset import load_dataset
from training.data.latent_cache import LatentCache, photo_time_ids
from training.loop import train


def save(path, width, height, orientation=1):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def diffusers_time_ids(path, size):
    """Return the time ids of DreamBoothDataset and compute_time_ids in diffusers' train_dreambooth_lora_sdxl.py
    (58eb52c) for a centre crop. torchvision's Resize makes the short side ``size`` and truncates the long side.
    """
    image = ImageOps.exif_transpose(Image.open(path))
    original = [image.height, image.width]
    short, long = sorted(image.size)
    width, height = (size, int(size * long / short)) if image.width < image.height else (int(size * long / short), size)
    y1, x1 = max(0, round((height - size) / 2.0)), max(0, round((width - size) / 2.0))
    return [*original, y1, x1, size, size]


@pytest.mark.parametrize(
    ("width", "height", "orientation"), [(256, 192, 1), (100, 300, 1), (640, 427, 1), (300, 200, 6), (128, 128, 1)]
)
def test_time_ids_match_diffusers(tmp_path, width, height, orientation):
    """Up to one pixel of the crop, because of different rounding."""
    path = save(tmp_path / "a.jpg", width, height, orientation)
    (photo,) = load_dataset([path], 64, "center").photos
    wanted = torch.tensor(diffusers_time_ids(path, 64)).float()  # a centre crop is the same when mirrored
    for view in photo_time_ids(photo, flip=True):
        assert (view - wanted).abs().max() <= 1 and torch.equal(view[[0, 1, 4, 5]], wanted[[0, 1, 4, 5]])
    assert photo_time_ids(photo, flip=False).shape == (1, 6)


def test_the_crop_of_a_mirrored_photo_is_mirrored(tmp_path):
    path = tmp_path / "a.png"
    image = Image.new("RGB", (384, 128), "gray")  # all detail is on the left
    image.paste(Image.open(save(tmp_path / "detail.png", 128, 128)), (0, 0))
    image.save(path)
    (photo,) = load_dataset([path], 64, "smart").photos
    plain, mirrored = photo_time_ids(photo, flip=True)[:, 3].tolist()
    assert plain == 0.5 * photo.crop[0] < mirrored and plain + 64 + mirrored == 384 / 2


def test_a_crop_box_reduces_the_original_size(tmp_path):
    path = save(tmp_path / "a.jpg", 400, 300)
    (photo,) = load_dataset([path], 128, "center", {path: (100, 50, 300, 150)}).photos
    assert photo_time_ids(photo, flip=True).tolist() == [[100, 200, 0, 64, 128, 128]] * 2
    (whole,) = load_dataset([path], 128, "letterbox").photos
    assert photo_time_ids(whole, flip=False).tolist() == [[300, 400, 0, 0, 128, 128]], "nothing is cropped"


def test_each_view_has_its_own_time_ids():
    mean = torch.arange(4.0).reshape(2, 2, 1, 1, 1)
    ids = mean.reshape(2, 2, 1).expand(2, 2, 6)
    cache = LatentCache(mean, torch.zeros_like(mean), {"ids": torch.zeros(2, 1)}, ids)
    seen = set()
    for position in range(8):
        latents, text, _ = cache.batch(2, position, 0, "photos")
        assert torch.equal(latents.flatten(), text["time_ids"][:, 0])
        seen |= set(latents.flatten().tolist())
    assert len(seen) == 4


@pytest.mark.parametrize(("with_text", "conditioned"), [(False, True), (True, True), (False, False)])
def test_the_unet_receives_the_time_ids_of_photos_and_class_images(with_text, conditioned, photos, tmp_path):
    pipe, seen = tiny_xl_pipe(), []
    pipe.unet.register_forward_pre_hook(
        lambda unet, given, named: seen.append(named["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    values = {"name": "Rex", "photos": [str(photos)], "class_noun": "dog", "base": "tiny-xl", "resolution": 64,
              "steps": 1, "batch_size": 3, "num_class_images": 1, "sample_every": 0, "sample_prompts": [],
              "checkpoint_every": 1, "crop": "center", "device": "cpu", "train_text_encoder": with_text,
              "gradient_checkpointing": False, "size_conditioning": conditioned}  # fmt: skip
    train(configs.parse(values), tmp_path, pipe=pipe)
    photo = [192, 256, 0, 11, 64, 64] if conditioned else [64, 64, 0, 0, 64, 64]
    assert seen[-1].tolist() == [photo] * 3 + [[64, 64, 0, 0, 64, 64]] * 3
