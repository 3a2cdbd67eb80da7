"""One optimiser step with each method, relative to LoRA's.

    python -m benchmarks.bench_step [--device cuda] [--base toybox] [--side 32] [--batch-size 1] [--rounds 5]

HRA is also measured with the orthogonality penalty that the Stable Diffusion presets use. On a GPU every step is also
captured in a CUDA graph, and the targets apply to the graphs, which a run uses there; if bitsandbytes is installed, HRA
is measured with its 8-bit AdamW.
"""

from functools import partial

from app.benchmarking.timing import time_interleaved
from app.benchmarking.workloads import make_training_step
from benchmarks.models import copy_with_adapter, load_unet
from benchmarks.options import parse_sd1_options
from benchmarks.report import publish_ratios
from benchmarks.steps import captured, make_step, make_steps
from hra_diffusion.adapters.methods import COMPARED
from hra_diffusion.libraries import bitsandbytes_installed, import_bitsandbytes
from training.presets import defaults

LIMIT, GRAPH_LIMIT = 1.10, 1.05


def main() -> None:
    args = parse_sd1_options(__doc__, batch_size=1)
    unet = load_unet(args.base, args.device, args.dtype)
    shape = args.rank, args.batch_size, args.side
    preset = {"orthogonality": defaults("sd1", "hra", "balanced")["options"]["orthogonality"]}
    variants = make_steps(unet, COMPARED, *shape)
    variants[f"hra, λ {preset['orthogonality']:g}"] = make_step(unet, "hra", *shape, **preset)
    graphs = captured(variants, args.device)
    limits = dict.fromkeys(graphs, GRAPH_LIMIT) or dict.fromkeys(variants, LIMIT)
    if args.device == "cuda" and bitsandbytes_installed():
        model, parameters = copy_with_adapter(unet, "hra", args.rank)
        optimizer = partial(import_bitsandbytes().optim.AdamW8bit, lr=1e-5)
        step = make_training_step(model, parameters, args.batch_size, args.side, make_optimizer=optimizer)
        variants["hra, 8-bit AdamW"] = step
    seconds = time_interleaved(variants | graphs, args.rounds, minutes=args.minutes)
    columns = ("method", "seconds per step", "÷ LoRA")
    publish_ratios(args, seconds, lambda name: "lora, CUDA graph" if name in graphs else "lora", columns, limits)


if __name__ == "__main__":
    main()
