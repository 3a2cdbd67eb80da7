"""Contact sheets of images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

PROMPTS = (
    "a photo of a fox in the snow",
    "a photo of a strawberry on a blue background",
    "a photo of a taxi with a city in the background",
    "a photo of a frog in the jungle",
    "a photo of a teapot on top of a wooden floor",
    "a photo of an owl with the Eiffel Tower in the background",
    "a photo of a teddy bear on top of a purple rug in a forest",
    "a photo of a panda on top of pink fabric",
    "a photo of a sailboat floating on top of water",
    "a photo of a cactus on the beach",
    "a photo of a tractor with a mountain in the background",
    "a photo of a duck floating in an ocean of milk",
    "a photo of a bear wearing a santa hat in the snow",
    "a photo of a cat in a police outfit",
    "a photo of a purple elephant with a blue house in the background",
    "a photo of a fox next to a red apple",
)
COLUMNS = 8


def contact_sheet(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Arrange images of one size in rows of ``columns`` on a white background."""
    width, height = images[0].width + gap, images[0].height + gap
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet


def generate_sheet(model: Path, guidance: float, seeds: Sequence[int] = (0, 1, 2)) -> Image.Image:
    """Generate every prompt of PROMPTS with the pipeline folder ``model``, for each seed."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for seed in seeds:
        generators = [torch.Generator().manual_seed(seed) for _ in PROMPTS]
        options = {"num_inference_steps": 25, "guidance_scale": guidance, "generator": generators}
        output = pipeline([*PROMPTS], return_dict=False, **options)  # type: ignore
        images += output[0]
    return contact_sheet(images, columns=COLUMNS)
