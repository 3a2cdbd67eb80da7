"""Tiny pipelines of the families that are trained by flow matching."""

import functools
import string

import torch
from conftest import tiny_flux2_transformer, tiny_sd3_transformer, tiny_text_config, tiny_tokenizer
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextModelWithProjection,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode


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


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""What Qwen3's chat template does with the first message."""


def tiny_qwen3_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of bytes and the word "user", with Qwen3's special tokens."""
    words = ["us", "er", "user"]
    vocab = {token: i for i, token in enumerate([*bytes_to_unicode().values(), *words, "<|endoftext|>"])}
    return Qwen2Tokenizer(
        vocab=vocab, merges=[("u", "s"), ("e", "r"), ("us", "er")], chat_template=CHAT, model_max_length=131072,
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    )  # fmt: skip


def tiny_qwen3(hidden_size: int = 16) -> Qwen3ForCausalLM:
    """Narrow, with enough layers for the 27th hidden state."""
    sizes = {"hidden_size": hidden_size, "intermediate_size": 16, "num_hidden_layers": 28, "vocab_size": 272}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, max_position_embeddings=512, pad_token_id=259)).eval()


def tiny_flux2_pipe(is_distilled: bool = False) -> Flux2KleinPipeline:
    """A tiny FLUX.2 klein. The batch normalisation of its latents is not the identity."""
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=16,
    )  # fmt: skip
    vae.bn.running_mean.normal_(std=0.2)
    vae.bn.running_var.uniform_(0.2, 2)
    pipe = Flux2KleinPipeline(
        transformer=tiny_flux2_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=tiny_qwen3(),
        tokenizer=tiny_qwen3_tokenizer(),
        is_distilled=is_distilled,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.default_sample_size = 8
    pipe.base_name = "tiny-flux2"
    return pipe


FLOW_PIPES = {
    "sd3": tiny_sd3_pipe,
    "sd3 without T5": functools.partial(tiny_sd3_pipe, t5=False),
    "flux2": tiny_flux2_pipe,
}
"""A tiny pipeline of every family that is trained by flow matching."""
