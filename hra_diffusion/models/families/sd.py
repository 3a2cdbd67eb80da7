"""Stable Diffusion 1 and 2: one text encoder (CLIP, or OpenCLIP in the same class), nothing beside the text.

What else is different in version 2, velocity prediction and widths, its configurations say themselves.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn


class StableDiffusion:
    """Stable Diffusion 1.x and 2.x, and what is built like them."""

    name = "sd"
    pipeline = "StableDiffusionPipeline"
    encoders: tuple[tuple[str, str], ...] = (("text_encoder", "tokenizer"),)
    kohya: tuple[tuple[str, str], ...] = (("unet", "lora_unet"), ("text_encoder", "lora_te"))
    hidden_states = "LAST_HIDDEN_STATES_NORMALIZED"
    guidance_scale = 7.5
    additions: tuple[str | None, ...] = (None, "text")  # "text" pools the caption by itself, as toybox's UNet does
    loading: Mapping[str, Any] = MappingProxyType({"safety_checker": None, "requires_safety_checker": False})
    original_unet_names = False

    def encode(self, pipe: Any, prompts: list[str], negative: list[str] | None) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call."""
        positive, other = pipe.encode_prompt(prompts, pipe.device, 1, negative is not None, negative)
        return {"prompt_embeds": positive, "negative_prompt_embeds": other}

    def embed(self, encoders: Sequence[nn.Module], ids: Tensor) -> dict[str, Tensor]:
        """Ids (B, 1, L) to the last hidden state (B, L, d)."""
        return {"hidden": encoders[0](ids[:, 0])[0]}

    def unseen(self, component: str, encoder: Any) -> str:
        """All layers count."""
        return ""

    def conditions(self, text: dict[str, Tensor], pixels: int) -> dict[str, Any]:
        """These bases are conditioned on the text alone."""
        return {}
