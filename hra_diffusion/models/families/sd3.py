"""Stable Diffusion 3 and 3.5: a transformer trained by flow matching, with two CLIP text encoders and T5.

T5 may be missing, in a folder without it; its part of the text is then zero. Sources: arXiv 2403.03206, and diffusers'
StableDiffusion3Pipeline, whose encoding and decoding these functions follow.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hra_diffusion.models import flow
from hra_diffusion.models.families import clip
from hra_diffusion.models.families.latents import scaled
from hra_diffusion.models.families.transformer import TransformerFamily

T5_TOKENS = 256
"""Tokens that the pipeline has T5 read by default (``max_sequence_length``)."""
PATCH = 2


class StableDiffusion3(TransformerFamily):
    """Stable Diffusion 3 and 3.5."""

    name = "sd3"
    pipeline = "StableDiffusion3Pipeline"
    encoders: tuple[tuple[str, str], ...] = (
        ("text_encoder", "tokenizer"),
        ("text_encoder_2", "tokenizer_2"),
        ("text_encoder_3", "tokenizer_3"),
    )
    optional_encoders: tuple[str, ...] = ("text_encoder_3",)
    prompt_tokens: int | None = T5_TOKENS
    kohya_prefixes: tuple[tuple[str, str], ...] = (
        ("transformer", "lora_unet"),
        ("text_encoder", "lora_te1"),
        ("text_encoder_2", "lora_te2"),
    )
    defaults = (40, 4.5)
    scale = staticmethod(scaled)

    def noise_process(self, scheduler: Any) -> flow.FlowProcess:
        """Return the flow-matching process of the scheduler."""
        return flow.of(scheduler, PATCH)

    def distillation_sign(self, pipe: Any) -> str:
        """Turbo models have no sign of their own in their configuration, only their name."""
        return "its name says Turbo" if "turbo" in str(getattr(pipe, "base_name", "")).lower() else ""

    def encode_prompts(self, pipe: Any, prompts: list[str], negative: list[str] | None) -> dict[str, Any]:
        """Encode prompts as the pipeline's call does."""
        hidden, other, pooled, other_pooled = pipe.encode_prompt(
            prompts, None, None, device=pipe.device, do_classifier_free_guidance=negative is not None,
            negative_prompt=negative,
        )  # fmt: skip
        return {
            "prompt_embeds": hidden,
            "negative_prompt_embeds": other,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": other_pooled,
        }

    def tokenize(self, tokenizers: Sequence[Any], captions: Sequence[str]) -> Tensor:
        """Return token ids (N, encoders, L): of the CLIP models, filled up with 0, and of T5."""
        ids = clip.tokenize(tokenizers[:2], captions)
        if len(tokenizers) == 2:
            return ids
        options = {"padding": "max_length", "max_length": T5_TOKENS, "truncation": True, "return_tensors": "pt"}
        own = tokenizers[2](list(captions), **options).input_ids
        return torch.cat([F.pad(ids, (0, T5_TOKENS - ids.shape[-1])), own[:, None]], dim=1)

    def ids_shape(self, encoders: Sequence[Any]) -> tuple[int, int]:
        """Return rows and length of the token ids of one caption."""
        return clip.ids_shape(encoders) if len(encoders) == 2 else (3, T5_TOKENS)

    def embed(self, encoders: Sequence[nn.Module], ids: Tensor) -> dict[str, Tensor]:
        """Map token ids (B, encoders, L) to hidden states and pooled outputs of the CLIP models; T5's states follow.

        ``hidden``: (B, 77 + 256, d) in T5's width, or (B, 77, 2048) without T5. ``pooled``: (B, 2048).
        """
        first: Any = encoders[0]
        length = first.config.max_position_embeddings
        outputs = [encoder(ids[:, i, :length], output_hidden_states=True) for i, encoder in enumerate(encoders[:2])]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        if len(encoders) == 3:
            of_t5 = encoders[2](ids[:, 2])[0]
            hidden = torch.cat([F.pad(hidden, (0, of_t5.shape[-1] - hidden.shape[-1])), of_t5], dim=1)
        return {"hidden": hidden, "pooled": torch.cat([output.text_embeds for output in outputs], dim=-1)}

    def latent_channels(self, vae: Any) -> int:
        """Return the channels of the VAE's latents."""
        return vae.config.latent_channels

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents (N, 16, height / 8, width / 8) in the VAE's precision, as the pipeline's call does."""
        config = pipe.vae.config
        latents = latents.to(pipe.vae.dtype) / config.scaling_factor + config.shift_factor
        return pipe.vae.decode(latents, return_dict=False)[0]

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, text: dict[str, Tensor], pixels: int) -> Tensor:
        """The transformer also takes the pooled text; the states of a missing T5 are zero."""
        hidden = text["hidden"]
        if hidden.shape[1] < T5_TOKENS:
            hidden = F.pad(hidden, (0, denoiser.config.joint_attention_dim - hidden.shape[-1], 0, T5_TOKENS))
        return denoiser(
            hidden_states=latents, timestep=times, encoder_hidden_states=hidden, pooled_projections=text["pooled"]
        ).sample
