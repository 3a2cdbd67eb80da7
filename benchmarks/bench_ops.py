"""Operations that an adapter adds to a training step, per adapted layer, relative to LoRA.

    python -m benchmarks.bench_ops [--base narrow-sd1] [--rank 8] [--dtype bfloat16]

One operation is one call of an ATen function in the forward or backward pass. Views (view, transpose, expand, detach)
and bare allocations (empty) launch no kernel and are not counted. The same step of the UNet without an adapter, with
gradients through the same activations, is subtracted, and the rest is divided by the number of adapted layers. The
rest contains the preparation of factors for the whole model, casts, and the accumulation of gradients; it does not
contain gradient clipping and the optimiser.
"""

from collections import Counter
from typing import Any

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch.utils._python_dispatch import TorchDispatchMode

import hra_diffusion as hra
from app.benchmarking.workloads import random_unet_inputs, weight_sharing_copy
from benchmarks.models import load_unet
from benchmarks.options import parse_options
from benchmarks.report import BASES, Report, Target, publish
from hra_diffusion.adapters.methods import COMPARED

LIMITS = {"hra": 1.0, "hoft": 1.6, "shoft": 2.0}
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
"""Functions that launch no kernel although their schema does not mark them as views."""


class OperationCounter(TorchDispatchMode):
    """Counts the ATen calls within its block by function, without views and allocations."""

    def __init__(self):
        super().__init__()
        self.calls = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func._opname not in ALLOCATIONS:
            self.calls[func._opname] += 1
        return func(*args, **(kwargs or {}))


def main() -> None:
    args = parse_options(__doc__, {}, {}, base="narrow-sd1", dtype="bfloat16", rank=8)
    unet = load_unet(args.base, args.device, args.dtype)
    added = {text: added_operations(unet, args.rank, text == "learning") for text in ("frozen", "learning")}
    rows = [
        (method, *(cell for counts in added.values() for cell in (f"{counts[method]:.1f}",
                                                                  f"{counts[method] / counts['lora']:.2f}")))
        for method in COMPARED
    ]  # fmt: skip
    targets = [
        Target(f"{method} ÷ LoRA, text {text}", counts[method] / counts["lora"], limit)
        for text, counts in added.items()
        for method, limit in LIMITS.items()
    ]
    columns = ("method", *(head for text in added for head in (f"per layer, text {text}", "÷ LoRA")))
    conditions = f"{BASES[args.base]}, attention, rank {args.rank}, {args.dtype} with a float32 adapter, {args.device}"
    publish(Report(conditions, columns, rows, targets, raw=added), args)


def added_operations(unet: Any, rank: int, text_learns: bool) -> dict[str, float]:
    """Return the operations that each method adds to a step, per adapted layer.

    With ``text_learns`` gradients also flow into the text embeddings, as they do when the text encoder is trained.
    """
    frozen = step_operations(weight_sharing_copy(unet).requires_grad_(False), text_learns)
    added = {}
    for method in COMPARED:
        model = weight_sharing_copy(unet)
        layers = hra.attach(model, method, {"rank": rank})
        added[method] = (step_operations(model, text_learns).total() - frozen.total()) / len(layers)
    return added


def step_operations(unet: Any, text_learns: bool) -> Counter[str]:
    """Count the operations of a forward and backward pass, with gradients from the first attention layer on."""
    (latents, timesteps, text), conditions = random_unet_inputs(unet, 1, 8)
    first = next(module for module in unet.modules() if isinstance(module, Attention))
    first.register_forward_pre_hook(lambda module, args: (args[0].detach().requires_grad_(), *args[1:]))
    for _ in range(2):  # the first step fills caches
        unet.zero_grad()
        inputs = latents, timesteps, text.detach().requires_grad_(text_learns)
        with OperationCounter() as counter:
            F.mse_loss(unet(*inputs, **conditions).sample.float(), latents.float()).backward()
    return counter.calls


if __name__ == "__main__":
    main()
