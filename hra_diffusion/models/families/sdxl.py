"""Stable Diffusion XL: two text encoders, a pooled text embedding, and the image's size and crop as conditioning.

Sources: SDXL (arXiv 2307.01952) and diffusers' StableDiffusionXLPipeline.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.models.devices import vae_upcast
from hra_diffusion.models.families.unet import UNetFamily


class StableDiffusionXL(UNetFamily):
    """Stable Diffusion XL."""

    name = "sdxl"
    pipeline = "StableDiffusionXLPipeline"
    encoders: tuple[tuple[str, str], ...] = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
    kohya_prefixes: tuple[tuple[str, str], ...] = (
        ("unet", "lora_unet"),
        ("text_encoder", "lora_te1"),
        ("text_encoder_2", "lora_te2"),
    )
    embeddings_type: str | None = "PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED"
    defaults = (25, 5.0)
    addition_embed_types: tuple[str | None, ...] = ("text_time",)
    from_pretrained_kwargs: Mapping[str, Any] = MappingProxyType({"add_watermarker": False})
    original_unet_names = True

    def encode_prompts(self, pipe: Any, prompts: list[str], negative: list[str] | None) -> dict[str, Any]:
        """Encode prompts as the pipeline's call does, with zeros for empty negative prompts if the base model asks."""
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
        """Map token ids (B, 2, L) to concatenated penultimate hidden states and the second pooled output."""
        outputs = [encoder(ids[:, i], output_hidden_states=True) for i, encoder in enumerate(encoders)]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return {"hidden": hidden, "pooled": outputs[-1].text_embeds}

    def unused_layers(self, component: str, encoder: Any) -> tuple[str, ...]:
        """The last layer of the first encoder; that of the second computes the pooled embedding."""
        return (f"encoder.layers.{encoder.config.num_hidden_layers - 1}",) if component == "text_encoder" else ()

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents (N, 4, height / 8, width / 8) as the pipeline's call does; a float16 VAE in float32."""
        with vae_upcast(pipe.vae) as vae:
            latents = latents.to(vae.dtype)
            mean, std = (vae.config.get(f"latents_{name}") for name in ("mean", "std"))
            if mean is not None and std is not None:
                mean, std = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
                latents = latents * std / vae.config.scaling_factor + mean
            else:
                latents = latents / vae.config.scaling_factor
            return vae.decode(latents, return_dict=False)[0]

    def finish(self, pipe: Any, pixels: Tensor) -> Tensor:
        """Scale pixels to 0 to 1, with the pipeline's watermark if it adds one."""
        if pipe.watermark is not None:
            pixels = pipe.watermark.apply_watermark(pixels)
        return pipe.image_processor.postprocess(pixels, "pt")

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, text: dict[str, Tensor], pixels: int) -> Tensor:
        """The UNet also takes the pooled text embedding (B, p) and time ids (B, 6), by default of uncropped images."""
        pooled = text["pooled"]
        time_ids = text.get("time_ids")
        if time_ids is None:
            time_ids = uncropped_time_ids(pixels, pixels).to(pooled).expand(len(pooled), -1)
        added = {"text_embeds": pooled, "time_ids": time_ids}
        return denoiser(latents, times, text["hidden"], added_cond_kwargs=added).sample


def uncropped_time_ids(height: int, width: int) -> Tensor:
    """Time ids (6,) of a whole image: original size, crop offset (0, 0), target size."""
    return torch.tensor([height, width, 0, 0, height, width])
