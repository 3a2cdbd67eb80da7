"""Pixel values, compared with transformers' image processors."""

import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, ViTImageProcessorPil

from hra_diffusion.evaluation import dino, efficientnet
from hra_diffusion.evaluation.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

IMAGENET = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""openai/CLIP, ``_transform`` in clip/clip.py."""
HUB_DINOV2 = {**IMAGENET, "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3}
"""preprocessor_config.json of facebook/dinov2-base; the same is DINO's own transform."""
HUB_DINO = {**IMAGENET, "size": 224, "resample": 2}
"""preprocessor_config.json of facebook/dino-vits16."""
CASES = {
    "clip": (Preprocessing(224, 224, CLIP_MEAN, CLIP_STD), CLIPImageProcessorPil()),
    "dino and dinov2": (dino.OFFICIAL, BitImageProcessorPil(**HUB_DINOV2)),
    "dino by its hub processor": (dino.HUB_PROCESSOR, ViTImageProcessorPil(**HUB_DINO)),
    "efficientnet": (
        efficientnet.PREPROCESSING,
        BitImageProcessorPil(
            size={"shortest_edge": 297},
            crop_size={"height": 260, "width": 260},
            image_mean=[127 / 255] * 3,
            image_std=[128 / 255] * 3,
        ),
    ),
}
SIZES = ((512, 512), (301, 200), (200, 333), (224, 500), (97, 96))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_those_of_transformers(name, size):
    own, processor = CASES[name]
    generator = torch.Generator().manual_seed(0)
    image = Image.fromarray(torch.randint(0, 256, (*size[::-1], 3), dtype=torch.uint8, generator=generator).numpy())
    expected = processor(images=[image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(own([image]), expected, atol=1e-5, rtol=0)


def test_efficientnet_gets_pixels_minus_127_divided_by_128():
    for grey in (0, 127, 255):
        pixels = efficientnet.PREPROCESSING([Image.new("RGB", (260, 260), (grey,) * 3)])
        torch.testing.assert_close(pixels, torch.full((1, 3, 260, 260), (grey - 127) / 128), atol=1e-6, rtol=0)
