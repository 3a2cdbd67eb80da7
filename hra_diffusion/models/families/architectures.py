"""Configurations of released base models: for single-file checkpoints, and to plan memory unloaded.

The values are those of the public configuration files of Stable Diffusion 1.5, 2.1, XL base 1.0, 3.5 medium, and FLUX.2
klein base 4B.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

Values = dict[str, Any]

_CROSS, _UP = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
_UNET_1: Values = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*_CROSS, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *_UP),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_UNET_2 = _UNET_1 | {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}
_UNET_XL: Values = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", *_CROSS[:2]),
    "up_block_types": (*_UP[:2], "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_VAE: Values = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_CLIP_L: Values = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
_OPEN_CLIP_H = _CLIP_L | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,  # of 24; the UNet takes the penultimate hidden state
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
_OPEN_CLIP_G = _CLIP_L | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_TRANSFORMER_3: Values = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
_T5_XXL: Values = {
    "architectures": ["T5EncoderModel"],
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "tie_word_embeddings": False,
}
_TRANSFORMER_FLUX2: Values = {
    "_class_name": "Flux2Transformer2DModel",
    "in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
_QWEN3_4B: Values = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
_NOISE: Values = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
_DDIM: Values = {"clip_sample": False, "set_alpha_to_one": False}

PREDICTION_KEY = "modelspec.prediction_type"
"""Metadata key of a checkpoint's prediction type, "epsilon" or "v" (Stability AI Model Metadata Standard)."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """Configurations of a base model's components, with the names of their classes.

    ``pads``: padding token of each tokenizer.
    """

    name: str
    pipeline: str
    denoiser: Values
    vae: Values
    encoders: tuple[Values, ...]
    scheduler: tuple[str, Values]
    pads: tuple[str, ...]

    def predicting(self, prediction_type: str, zero_snr: bool) -> "Architecture":
        """Return this architecture with another noise process."""
        name, noise = self.scheduler
        noise = noise | {"prediction_type": prediction_type}
        if zero_snr:
            noise |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return replace(self, scheduler=(name, noise))

    def build_denoiser(self) -> Any:
        """Build the denoiser with random weights."""
        return getattr(diffusers, self.denoiser["_class_name"]).from_config(self.denoiser)

    def build_vae(self) -> Any:
        """Build the VAE with random weights."""
        return getattr(diffusers, self.vae["_class_name"]).from_config(self.vae)

    def build_encoders(self) -> list[nn.Module]:
        """Build the text encoders with random weights."""
        classes = [getattr(transformers, values["architectures"][0]) for values in self.encoders]
        return [kind(kind.config_class(**values)) for kind, values in zip(classes, self.encoders, strict=True)]

    def write(self, folder: Path) -> None:
        """Write the configuration files of a diffusers folder with a UNet, without weights and tokenizers."""
        scheduler, noise = self.scheduler
        index = {"_class_name": self.pipeline, "scheduler": ["diffusers", scheduler]}
        index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
        # include the defaults: from_single_file does not fill them in
        unet, vae = (dict(on_meta(build).config) for build in (self.build_denoiser, self.build_vae))
        files: dict[str, Values] = {"unet/config": unet, "vae/config": vae, "scheduler/scheduler_config": noise}
        for number, values in zip(("", "_2"), self.encoders, strict=False):
            index[f"text_encoder{number}"] = ["transformers", values["architectures"][0]]
            index[f"tokenizer{number}"] = ["transformers", "CLIPTokenizer"]
            files[f"text_encoder{number}/config"] = values | {"model_type": "clip_text_model"}
        for name, values in (files | {"model_index": index}).items():
            path = folder / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")


SD1 = Architecture(
    "Stable Diffusion 1", "StableDiffusionPipeline", _UNET_1, _VAE, (_CLIP_L,),
    ("DDIMScheduler", _NOISE | _DDIM | {"prediction_type": "epsilon"}), ("<|endoftext|>",),
)  # fmt: skip
SD2 = Architecture(
    "Stable Diffusion 2", "StableDiffusionPipeline", _UNET_2, _VAE | {"sample_size": 768}, (_OPEN_CLIP_H,),
    ("DDIMScheduler", _NOISE | _DDIM | {"prediction_type": "v_prediction"}), ("!",),
)  # fmt: skip
SD2_BASE = replace(
    SD2, name="Stable Diffusion 2 base", denoiser=_UNET_2 | {"sample_size": 64}, vae=_VAE,
    scheduler=("DDIMScheduler", _NOISE | _DDIM | {"prediction_type": "epsilon"}),
)  # fmt: skip
SDXL = Architecture(
    "Stable Diffusion XL", "StableDiffusionXLPipeline", _UNET_XL,
    _VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}, (_CLIP_L, _OPEN_CLIP_G),
    ("EulerDiscreteScheduler", _NOISE | {"prediction_type": "epsilon", "timestep_spacing": "leading"}),
    ("<|endoftext|>", "!"),
)  # fmt: skip
SD35 = Architecture(
    "Stable Diffusion 3.5 medium", "StableDiffusion3Pipeline", _TRANSFORMER_3,
    _VAE | {
        "latent_channels": 16, "sample_size": 1024, "scaling_factor": 1.5305, "shift_factor": 0.0609,
        "use_quant_conv": False, "use_post_quant_conv": False,
    },
    (_CLIP_L | {"architectures": ["CLIPTextModelWithProjection"]}, _OPEN_CLIP_G, _T5_XXL),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}), ("<|endoftext|>", "!", "<pad>"),
)  # fmt: skip
FLUX2_KLEIN = Architecture(
    "FLUX.2 klein base 4B", "Flux2KleinPipeline", _TRANSFORMER_FLUX2, {"_class_name": "AutoencoderKLFlux2"},
    (_QWEN3_4B,), ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}), ("<|endoftext|>",),
)  # fmt: skip
RELEASED = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL, "sd3": SD35, "flux2": FLUX2_KLEIN}


def on_meta(build: Callable[[], Any]) -> Any:
    """Return ``build()`` on the meta device."""
    with torch.device("meta"):
        return build()
