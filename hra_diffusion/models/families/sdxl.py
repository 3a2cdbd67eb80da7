"""Stable Diffusion XL: two text encoders, a pooled embedding, and the picture's size and crop as numbers.

Sources: SDXL, arXiv 2307.01952; diffusers' pipeline of it, whose call this feeds.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn


class StableDiffusionXL:
    """Stable Diffusion XL."""

    name = "sdxl"
    pipeline = "StableDiffusionXLPipeline"
    encoders: tuple[tuple[str, str], ...] = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
    kohya: tuple[tuple[str, str], ...] = (
        ("unet", "lora_unet"),
        ("text_encoder", "lora_te1"),
        ("text_encoder_2", "lora_te2"),
    )
    hidden_states = "PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED"
    guidance_scale = 5.0
    additions: tuple[str | None, ...] = ("text_time",)
    loading: Mapping[str, Any] = MappingProxyType({"add_watermarker": False})
    original_unet_names = True

    def encode(self, pipe: Any, prompts: list[str], negative: list[str] | None) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call; an empty negative prompt is zeros where the base wants that."""
        hidden, other, pooled, other_pooled = pipe.encode_prompt(
            prompts, device=pipe.device, do_classifier_free_guidance=negative is not None, negative_prompt=negative
        )
        if negative is not None and pipe.config.force_zeros_for_empty_prompt:
            empty = torch.tensor([not text for text in negative], device=other.device)
            other = other.masked_fill(empty[:, None, None], 0)
            other_pooled = other_pooled.masked_fill(empty[:, None], 0)
        return {
            "prompt_embeds": hidden,
            "negative_prompt_embeds": other,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": other_pooled,
        }

    def embed(self, encoders: Sequence[nn.Module], ids: Tensor) -> dict[str, Tensor]:
        """Ids (B, 2, L) to both encoders' last hidden states but one, side by side, and the second's pooled output."""
        outputs = [encoder(ids[:, i], output_hidden_states=True) for i, encoder in enumerate(encoders)]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return {"hidden": hidden, "pooled": outputs[-1].text_embeds}

    def unseen(self, component: str, encoder: Any) -> str:
        """The first encoder's last layer; the second's makes the pooled embedding."""
        return f"encoder.layers.{encoder.config.num_hidden_layers - 1}" if component == "text_encoder" else ""

    def conditions(self, text: dict[str, Tensor], pixels: int) -> dict[str, Any]:
        """The pooled text and the time ids, (B, 6); without any in ``text``, those of pictures that are not cropped."""
        pooled = text["pooled"]
        time_ids = text.get("time_ids", uncropped(pixels).to(pooled).expand(len(pooled), -1))
        return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids}}


def uncropped(pixels: int) -> Tensor:
    """Time ids (6,) of a square picture: original size, no crop, target size."""
    return torch.tensor([pixels, pixels, 0, 0, pixels, pixels])
