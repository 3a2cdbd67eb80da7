"""Assembly of the trained components into a pipeline folder."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from hra_diffusion.files import atomic_path
from toybox.base import Base, new_scheduler
from toybox.tokenizer import save_tokenizer


def assemble(base: Base, vae: AutoencoderKL, tokenizer: CLIPTokenizer, card: str, folder: Path) -> None:
    """Write a float16 StableDiffusionPipeline folder with its model card, atomically."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=base.text_encoder,
        tokenizer=tokenizer,
        unet=base.unet,
        scheduler=new_scheduler(),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    with atomic_path(folder) as unfinished:
        pipeline.to(torch.float16).save_pretrained(unfinished)
        save_tokenizer(tokenizer, unfinished / "tokenizer")
        # transformers would load a float16 text encoder in float16; diffusers' components load in float32
        update_json(unfinished / "text_encoder" / "config.json", dtype="float32")
        # diffusers stores the path that a component was loaded from
        update_json(unfinished / "vae" / "config.json", _name_or_path="")
        (unfinished / "README.md").write_text(card)


def update_json(config: Path, **values: str) -> None:
    """Update values in a JSON file."""
    config.write_text(json.dumps(json.loads(config.read_text()) | values, indent=2) + "\n")
