"""Base models of the benchmarks, and adapters on them: ours and PEFT's."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import BOFTConfig, HRAConfig, LoraConfig, OFTConfig, inject_adapter_in_model
from torch import nn

from app.benchmarking.workloads import weight_sharing_copy
from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment, registry
from hra_diffusion.models import loading, sources
from hra_diffusion.models.families.architectures import SD1, SDXL, Architecture

ARCHITECTURES = {"sd1": SD1, "sdxl": SDXL}
PEFT_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
PEFT_CONFIGS = {
    "PEFT LoRA": lambda rank: LoraConfig(r=rank, lora_alpha=rank, target_modules=PEFT_TARGETS),
    "PEFT HRA": lambda rank: HRAConfig(r=rank, target_modules=PEFT_TARGETS),
    "PEFT OFT": lambda rank: OFTConfig(r=0, oft_block_size=32, target_modules=PEFT_TARGETS),
    "PEFT BOFT": lambda rank: BOFTConfig(boft_block_size=4, target_modules=PEFT_TARGETS),
}
"""PEFT configurations by name, each from a rank; OFT and BOFT use block sizes instead, here PEFT's defaults."""


def load_unet(base: str, device: str, dtype: str) -> Any:
    """Load toybox's UNet, or create one of a released architecture with random weights."""
    if base == sources.TOYBOX:
        return loading.load_base(base, device, dtype).unet
    return _random_weights(ARCHITECTURES[base], "build_unet", device, dtype)


def load_pipe(base: str, device: str, dtype: str) -> StableDiffusionPipeline:
    """Load toybox, or create Stable Diffusion 1.5 with random weights and toybox's tokenizer."""
    toybox = loading.load_base(sources.TOYBOX, device, dtype)
    if base == sources.TOYBOX:
        return toybox
    parts = {name: _random_weights(SD1, f"build_{name}", device, dtype) for name in ("unet", "vae", "encoders")}
    toybox.tokenizer.model_max_length = 77
    pipe = StableDiffusionPipeline(
        parts["vae"], parts["encoders"][0], toybox.tokenizer, parts["unet"], DDIMScheduler(**SD1.scheduler[1]),
        None, None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.base_name = SD1.name
    return pipe


def _random_weights(architecture: Architecture, build: str, device: str, dtype: str) -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(loading.DTYPES[dtype])
    try:
        built = getattr(architecture, build)()
    finally:
        torch.set_default_dtype(torch.float32)
    return [part.to(device).eval() for part in built] if isinstance(built, list) else built.to(device).eval()


def copy_with_adapter(unet: nn.Module, method: str, rank: int, **options: Any) -> tuple[Any, list[nn.Parameter]]:
    """Return a weight-sharing copy of the UNet with an adapter on its attention, and the adapter's parameters.

    ``method``: one of ours ("hra") or of PEFT's ("PEFT HRA").
    """
    model = weight_sharing_copy(unet)
    if method in registry.method_names():
        attachment.attach(model, method, {"rank": rank} | options)
        return model, list(attachment.adapter_parameters(model, "default").values())
    model.requires_grad_(False)
    with warnings.catch_warnings(action="ignore"):  # BOFT warns if it can't compile its CUDA kernel
        inject_adapter_in_model(PEFT_CONFIGS[method](rank), model, "default")
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def attach_random(pipe: StableDiffusionPipeline, methods: Sequence[str], rank: int) -> list[str]:
    """Attach adapters with random weights to the pipeline's UNet and return their names."""
    for number, method in enumerate(methods):
        attachment.attach(pipe.unet, method, {"rank": rank}, name=f"{method} {number}", seed=number)
        for parameter in attachment.adapter_parameters(pipe.unet, f"{method} {number}").values():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.data += 0.01 * noise.to(parameter)
    return pipeline.loaded(pipe)
