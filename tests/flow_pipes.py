"""Tiny pipelines of the families that are trained by flow matching."""

import functools
import string

import torch
from conftest import tiny_sd3_transformer, tiny_text_config, tiny_tokenizer
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer


def tiny_t5_tokenizer() -> T5Tokenizer:
    """A tokenizer of letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -1.0), *((c, -2.0) for c in string.ascii_letters)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def tiny_t5() -> T5EncoderModel:
    sizes = {"vocab_size": 64, "d_model": 64, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1}
    return T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).eval()


def tiny_sd3_pipe(t5: bool = True, **scheduler) -> StableDiffusion3Pipeline:
    """A tiny Stable Diffusion 3.5; T5's states are wider than those of both CLIP models together (48)."""
    torch.manual_seed(0)
    pipe = StableDiffusion3Pipeline(
        transformer=tiny_sd3_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=16,
            scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModelWithProjection(tiny_text_config(projection_dim=6)),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(tiny_text_config(hidden_size=16, projection_dim=10)),
        tokenizer_2=tiny_tokenizer(),
        text_encoder_3=tiny_t5() if t5 else None,
        tokenizer_3=tiny_t5_tokenizer() if t5 else None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.base_name = "tiny-sd3"
    return pipe


FLOW_PIPES = {"sd3": tiny_sd3_pipe, "sd3 without T5": functools.partial(tiny_sd3_pipe, t5=False)}
"""A tiny pipeline of every family that is trained by flow matching."""
