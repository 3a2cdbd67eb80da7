"""Base models of the benchmarks, and adapters on them: ours and PEFT's."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import BOFTConfig, HRAConfig, LoraConfig, OFTConfig, inject_adapter_in_model
from torch import nn

from app.benchmarking.workloads import weight_sharing_copy
from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment, registry
from hra_diffusion.adapters.targets import find_targets
from hra_diffusion.models import loading, sources
from hra_diffusion.models.families.architectures import FLUX2_KLEIN, SD1, SDXL, Architecture

NARROW = {"vocab_size": 49408, "hidden_size": 80, "intermediate_size": 160, "num_hidden_layers": 2,
          "num_attention_heads": 4, "max_position_embeddings": 77, "projection_dim": 80}  # fmt: skip
NARROW_VAE = SD1.vae | {"block_out_channels": (32, 32, 32, 32)}
NARROW_SD1 = replace(
    SD1,
    denoiser=SD1.denoiser | {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 80},
    vae=NARROW_VAE,
    encoders=(SD1.encoders[0] | NARROW,),
)
NARROW_SDXL = replace(
    SDXL,
    denoiser=SDXL.denoiser | {"block_out_channels": (32, 64, 128), "attention_head_dim": (1, 2, 4),
                              "cross_attention_dim": 160, "addition_time_embed_dim": 8,
                              "projection_class_embeddings_input_dim": 6 * 8 + 80},
    vae=NARROW_VAE,
    encoders=tuple(values | NARROW for values in SDXL.encoders),
)  # fmt: skip
SHALLOW_KLEIN = replace(FLUX2_KLEIN, denoiser=FLUX2_KLEIN.denoiser | {"num_layers": 0, "num_single_layers": 1})
NARROW_KLEIN = replace(
    FLUX2_KLEIN,
    denoiser=FLUX2_KLEIN.denoiser | {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2,
                                     "joint_attention_dim": 64},
)  # fmt: skip
ARCHITECTURES = {
    "sd1": SD1, "sdxl": SDXL, "klein": FLUX2_KLEIN, "shallow-klein": SHALLOW_KLEIN,
    "narrow-sd1": NARROW_SD1, "narrow-sdxl": NARROW_SDXL, "narrow-klein": NARROW_KLEIN,
}  # fmt: skip
"""Architectures by name. The narrow ones of UNets have all layers of the released ones, a tenth as wide, and two text
layers. "shallow-klein" is one of FLUX.2 klein's twenty single blocks, at full width."""
KLEIN_TARGETS = r".*\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out|to_qkv_mlp_proj|linear_in|linear_out)"
"""The layers of a transformer that PEFT's image benchmark adapts (its method_comparison/image-gen/experiments)."""
PEFT_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
"""The attention layers of a UNet."""
PEFT_CONFIGS = {
    "PEFT LoRA": lambda rank, layers=PEFT_TARGETS: LoraConfig(r=rank, lora_alpha=rank, target_modules=layers),
    "PEFT HRA": lambda rank, layers=PEFT_TARGETS: HRAConfig(r=rank, target_modules=layers),
    "PEFT OFT": lambda rank, layers=PEFT_TARGETS: OFTConfig(r=0, oft_block_size=32, target_modules=layers),
    "PEFT BOFT": lambda rank, layers=PEFT_TARGETS: BOFTConfig(boft_block_size=4, target_modules=layers),
}
"""PEFT configurations by name, each from a rank and layers; OFT and BOFT use block sizes, here PEFT's defaults."""


def load_unet(base: str, device: str, dtype: str) -> Any:
    """Load toybox's UNet, or create one of a released architecture with random weights."""
    if base == sources.TOYBOX:
        return loading.load_base(base, device, dtype).unet
    return _random_weights(ARCHITECTURES[base], "build_denoiser", device, dtype)


def load_pipe(base: str, device: str, dtype: str) -> StableDiffusionPipeline:
    """Load toybox, or create a Stable Diffusion 1.5 with random weights and toybox's tokenizer.

    Prompts are padded to 77 tokens as with Stable Diffusion's own tokenizer, so that they take the same time.
    """
    toybox = loading.load_base(sources.TOYBOX, device, dtype)
    if base == sources.TOYBOX:
        return toybox
    architecture = ARCHITECTURES[base]
    parts = {
        name: _random_weights(architecture, f"build_{name}", device, dtype) for name in ("denoiser", "vae", "encoders")
    }
    toybox.tokenizer.model_max_length = 77
    pipe = StableDiffusionPipeline(
        parts["vae"], parts["encoders"][0], toybox.tokenizer, parts["denoiser"],
        DDIMScheduler(**architecture.scheduler[1]), None, None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.base_name = architecture.name
    return pipe


def _random_weights(architecture: Architecture, build: str, device: str, dtype: str) -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(loading.DTYPES[dtype])
    try:
        with torch.device(device):
            built = getattr(architecture, build)()
    finally:
        torch.set_default_dtype(torch.float32)
    return [part.eval() for part in built] if isinstance(built, list) else built.eval()


def copy_with_adapter(unet: nn.Module, method: str, rank: int, **options: Any) -> tuple[Any, list[nn.Parameter]]:
    """Return a weight-sharing copy of the UNet with an adapter on its attention, and the adapter's parameters.

    ``method``: one of ours ("hra") or of PEFT's ("PEFT HRA").
    """
    model = weight_sharing_copy(unet)
    targets = "attention" if "cross_attention_dim" in model.config else KLEIN_TARGETS
    if method in registry.method_names():
        attachment.attach(model, method, {"rank": rank} | options, targets=targets)
        return model, list(attachment.adapter_parameters(model, "default").values())
    model.requires_grad_(False)
    with warnings.catch_warnings(action="ignore"):  # BOFT warns if it can't compile its CUDA kernel
        inject_adapter_in_model(PEFT_CONFIGS[method](rank, find_targets(model, targets)), model, "default")
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def attach_random(pipe: StableDiffusionPipeline, methods: Sequence[str], rank: int) -> list[str]:
    """Attach adapters with random weights to the pipeline's UNet and return their names."""
    for number, method in enumerate(methods):
        attachment.attach(pipe.unet, method, {"rank": rank}, name=f"{method} {number}", seed=number)
        for parameter in attachment.adapter_parameters(pipe.unet, f"{method} {number}").values():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.data += 0.01 * noise.to(parameter)
    return pipeline.loaded(pipe)
