"""One denoising step with guidance, with an unmerged (frozen) or a merged adapter, relative to the base model's.

    python -m benchmarks.bench_inference [--device cuda] [--base toybox] [--side 32] [--rounds 5]

On a GPU every step is also captured in a CUDA graph, and the targets apply to the graphs.
"""

import contextlib
from collections.abc import Callable

import torch

from app.benchmarking.timing import time_interleaved
from app.benchmarking.workloads import random_unet_inputs
from benchmarks.models import copy_with_adapter, load_unet
from benchmarks.options import parse_sd1_options
from benchmarks.report import publish_ratios
from benchmarks.steps import captured
from hra_diffusion.adapters import activation, merging
from hra_diffusion.adapters.methods import COMPARED

LIVE, GRAPH_LIVE, MERGED = 1.05, 1.02, 1.01


def main() -> None:
    args = parse_sd1_options(__doc__, cuda_dtype="float16")
    unet = load_unet(args.base, args.device, args.dtype).requires_grad_(False)
    models = {"base": unet}
    models |= {f"{name}, live": copy_with_adapter(unet, name, args.rank)[0] for name in COMPARED}
    models["hra, merged"] = copy_with_adapter(unet, "hra", args.rank)[0]
    merging.merge(models["hra, merged"])
    variants = {name: make_denoising_step(model, args.side) for name, model in models.items()}
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(activation.frozen(model))
        graphs = captured(variants, args.device)
        seconds = time_interleaved(variants | graphs, args.rounds, minutes=args.minutes)
    limits = {name: MERGED if "merged" in name else GRAPH_LIVE if graphs else LIVE for name in graphs or variants}
    columns = ("model", "seconds per step", "÷ base")
    publish_ratios(args, seconds, lambda name: "base, CUDA graph" if name in graphs else "base", columns, limits, ".3f")


def make_denoising_step(unet: torch.nn.Module, side: int) -> Callable[[], None]:
    """Return a call of the UNet as in a denoising step with classifier-free guidance."""
    inputs, conditions = random_unet_inputs(unet, 2, side)

    @torch.no_grad()
    def step() -> None:
        unet(*inputs, **conditions)

    return step


if __name__ == "__main__":
    main()
