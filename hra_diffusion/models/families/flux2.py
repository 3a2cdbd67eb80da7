"""FLUX.2 klein: a transformer trained by flow matching, whose text encoder is a Qwen3 language model.

A latent position of the transformer is a square of four of the VAE's, with their channels normalised together; text and
image are one sequence with coordinates in four dimensions. The source is diffusers' Flux2KleinPipeline, whose encoding
and decoding these functions follow.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hra_diffusion.models import flow
from hra_diffusion.models.families.transformer import TransformerFamily

TOKENS = 512
"""Tokens that the text encoder reads."""
TEMPLATE_TOKENS = 3
"""Tokens of Qwen3's chat template before the prompt; those after it are cut off if the prompt is too long."""
LAYERS = (9, 18, 27)
"""Hidden states of the text encoder that the transformer takes, side by side."""
SQUARE = 2
"""Side of the squares of the VAE's latents."""
UNDISTILLED = "black-forest-labs/FLUX.2-klein-base-4B"


class Flux2Klein(TransformerFamily):
    """FLUX.2 klein, the base and the distilled models."""

    name = "flux2"
    pipeline = "Flux2KleinPipeline"
    encoders: tuple[tuple[str, str], ...] = (("text_encoder", "tokenizer"),)
    optional_encoders: tuple[str, ...] = ()
    prompt_tokens: int | None = TOKENS - TEMPLATE_TOKENS
    defaults = (50, 4.0)

    def noise_process(self, scheduler: Any) -> flow.FlowProcess:
        """Return the flow-matching process of the scheduler."""
        return flow.of(scheduler, patch=1)

    def distillation_sign(self, pipe: Any) -> str:
        """The pipeline's configuration says whether the model is distilled."""
        distilled = pipe.config.get("is_distilled")
        return f"its configuration says so; it comes from {UNDISTILLED} or its 9B version" if distilled else ""

    def takes_guidance(self, pipe: Any) -> bool:
        """The pipeline ignores the guidance scale of distilled models."""
        return not self.distillation_sign(pipe)

    def encode_prompts(self, pipe: Any, prompts: list[str], negative: list[str] | None) -> dict[str, Any]:
        """Encode prompts as the pipeline's call does, equal ones once: the text encoder is large, without adapters."""
        places = {text: place for place, text in enumerate(dict.fromkeys([*prompts, *(negative or ())]))}
        hidden = pipe.encode_prompt(list(places))[0]
        return {
            "prompt_embeds": hidden[[places[text] for text in prompts]],
            "negative_prompt_embeds": None if negative is None else hidden[[places[text] for text in negative]],
        }

    def tokenize(self, tokenizers: Sequence[Any], captions: Sequence[str]) -> Tensor:
        """Return token ids and attention masks (N, 2, 512) of captions as the first message of a chat."""
        (tokenizer,) = tokenizers
        chats = [[{"role": "user", "content": caption}] for caption in captions]
        texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        options = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
        tokens = tokenizer(texts, **options)
        return torch.stack([tokens.input_ids, tokens.attention_mask], dim=1)

    def ids_shape(self, encoders: Sequence[Any]) -> tuple[int, int]:
        """Return rows and length of the token ids of one caption."""
        return 2, TOKENS

    def embed(self, encoders: Sequence[nn.Module], ids: Tensor) -> dict[str, Tensor]:
        """Map token ids and attention masks (B, 2, L) to hidden states of three layers side by side (B, L, 3 d)."""
        # causal, without padding; transformers would read a mask's values to make it, which waits for the device
        causal = ids.new_ones(ids.shape[-1], ids.shape[-1], dtype=torch.bool).tril()
        mask = causal & ids[:, 1, None, None].bool()
        states = encoders[0](
            input_ids=ids[:, 0], attention_mask=mask, output_hidden_states=True, use_cache=False, logits_to_keep=1
        ).hidden_states
        return {"hidden": torch.cat([states[layer] for layer in LAYERS], dim=-1)}

    def latent_channels(self, vae: Any) -> int:
        """Return the channels of a square of the VAE's latents."""
        return vae.config.latent_channels * SQUARE**2

    def scale(self, vae: Any, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise squares of the VAE's latents, (…, 4 C, h / 2, w / 2). The mode stands for the photo: std is 0."""
        squares = F.pixel_unshuffle(mean, SQUARE)
        centre, spread = _statistics(vae, squares)
        return (squares - centre) / spread, torch.zeros_like(squares)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode the transformer's latents (N, 4 C, h / 2, w / 2), or those of the pipeline's output (N, C, h, w)."""
        if latents.shape[1] == self.latent_channels(pipe.vae):
            centre, spread = _statistics(pipe.vae, latents)
            latents = F.pixel_shuffle(latents * spread + centre, SQUARE)
        return pipe.vae.decode(latents.to(pipe.vae.dtype), return_dict=False)[0]

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, text: dict[str, Tensor], pixels: int) -> Tensor:
        """The transformer takes a sequence of latent positions, with coordinates, and times from 0 to 1."""
        (count, _, height, width), hidden = latents.shape, text["hidden"]
        prediction = denoiser(
            hidden_states=latents.flatten(2).mT,
            encoder_hidden_states=hidden,
            timestep=times / 1000,
            img_ids=_coordinates(count, height, width, 1, latents.device),
            txt_ids=_coordinates(count, 1, 1, hidden.shape[1], latents.device),
        ).sample
        return prediction.mT.unflatten(-1, (height, width))


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation (4 C, 1, 1) of squares of the VAE's latents, on the device of ``like``."""
    variance = vae.bn.running_var + vae.config.batch_norm_eps
    return vae.bn.running_mean.view(-1, 1, 1).to(like), variance.sqrt().view(-1, 1, 1).to(like)


def _coordinates(count: int, height: int, width: int, words: int, device: torch.device) -> Tensor:
    """Return the coordinates of every token (count, height · width · words, 4): 0, row, column, place in the text."""
    axes = [torch.arange(size, device=device) for size in (1, height, width, words)]
    return torch.cartesian_prod(*axes).expand(count, -1, -1)
