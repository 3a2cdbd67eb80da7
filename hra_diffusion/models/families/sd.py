"""Stable Diffusion 1 and 2: one text encoder (CLIP, or OpenCLIP in the same class) and no other conditioning.

The prediction type and layer widths of version 2 come from the model's configuration.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from hra_diffusion.models.families.unet import UNetFamily


class StableDiffusion(UNetFamily):
    """Stable Diffusion 1.x and 2.x, and models of the same architecture."""

    name = "sd"
    pipeline = "StableDiffusionPipeline"
    encoders: tuple[tuple[str, str], ...] = (("text_encoder", "tokenizer"),)
    kohya_prefixes: tuple[tuple[str, str], ...] = (("unet", "lora_unet"), ("text_encoder", "lora_te"))
    embeddings_type: str | None = "LAST_HIDDEN_STATES_NORMALIZED"
    defaults = (25, 7.5)
    # "text": the UNet pools the prompt itself, as in toybox
    addition_embed_types: tuple[str | None, ...] = (None, "text")
    from_pretrained_kwargs: Mapping[str, Any] = MappingProxyType(
        {"safety_checker": None, "requires_safety_checker": False}
    )
    original_unet_names = False

    def encode_prompts(self, pipe: Any, prompts: list[str], negative: list[str] | None) -> dict[str, Any]:
        """Encode prompts as the pipeline's call does."""
        positive, other = pipe.encode_prompt(prompts, pipe.device, 1, negative is not None, negative)
        return {"prompt_embeds": positive, "negative_prompt_embeds": other}

    def embed(self, encoders: Sequence[nn.Module], ids: Tensor) -> dict[str, Tensor]:
        """Map token ids (B, 1, L) to the last hidden state (B, L, d)."""
        return {"hidden": encoders[0](ids[:, 0])[0]}

    def unused_layers(self, component: str, encoder: Any) -> tuple[str, ...]:
        """The UNet reads the last hidden state, so every layer is used."""
        return ()

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents (N, 4, height / 8, width / 8) in the VAE's precision, as the pipeline's call does."""
        latents = latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor
        return pipe.vae.decode(latents, return_dict=False)[0]

    def finish(self, pipe: Any, pixels: Tensor) -> Tensor:
        """Scale pixels to 0 to 1. Images that the pipeline's safety checker rejects, if it has one, are black."""
        pixels, rejected = pipe.run_safety_checker(pixels, pixels.device, pixels.dtype)
        accepted = None if rejected is None else [not found for found in rejected]
        return pipe.image_processor.postprocess(pixels, "pt", accepted)

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, text: dict[str, Tensor], pixels: int) -> Tensor:
        """The UNet is conditioned on the text alone."""
        return denoiser(latents, times, text["hidden"]).sample
