"""Inference: an adapter live, and merged, as parts of the base alone, per denoising step with guidance and per picture.

python -m benchmarks.bench_inference [--device cuda] [--base toybox] [--side 32] [--rounds 5]
"""

from collections.abc import Callable

import torch

from app.benchmarking.timing import time_interleaved
from app.benchmarking.workloads import random_unet_inputs
from benchmarks.common import adapted, load_unet, publish_ratios, sd1_arguments
from hra_diffusion.adapters import merging, registry

LIVE, MERGED = 1.05, 1.01


def main() -> None:
    given = sd1_arguments(__doc__, cuda_dtype="float16")
    unet = load_unet(given.base, given.device, given.dtype).requires_grad_(False)
    models = {"base": unet} | {f"{name}, live": adapted(unet, name, given.rank)[0] for name in registry.method_names()}
    models["hra, merged"] = adapted(unet, "hra", given.rank)[0]
    merging.merge(models["hra, merged"])
    spent = time_interleaved(
        {name: denoiser(model, given.side) for name, model in models.items()}, given.rounds, minutes=given.minutes
    )
    limits = {name: MERGED if "merged" in name else LIVE for name in spent}
    publish_ratios(given, spent, "base", ("model", "a step, s", "÷ base"), limits, ".3f")


def denoiser(unet: torch.nn.Module, side: int) -> Callable[[], None]:
    """One call of the UNet as a denoising step with guidance makes it."""
    inputs, more = random_unet_inputs(unet, 2, side)

    @torch.no_grad()
    def step() -> None:
        unet(*inputs, **more)

    return step


if __name__ == "__main__":
    main()
