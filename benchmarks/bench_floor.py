"""Training steps relative to a lower bound, the frozen UNet's own forward and backward pass.

The backward pass flows through the activations alone, back to the first attention layer.

    python -m benchmarks.bench_floor [--device cuda] [--base toybox] [--side 32] [--batch-size 1] [--rounds 5]

On a GPU every step is also captured in a CUDA graph, and the targets apply to the graphs: relative to the frozen UNet's
passes without a graph, and for the trainer relative to the same step in a graph.
"""

import tempfile
from pathlib import Path

from app.benchmarking.timing import ratios, time_interleaved
from app.benchmarking.workloads import make_frozen_step, weight_sharing_copy
from benchmarks.models import load_pipe
from benchmarks.options import parse_sd1_options
from benchmarks.report import Target, publish_ratios
from benchmarks.steps import captured, make_steps, start_session, train_config, trainer_step

METHODS, LIMIT, GRAPH_LIMIT, TRAINER_LIMIT = ("lora", "hra", "hoft"), 1.15, 0.7, 1.05
TRAINER, GRAPH = "the trainer, hra", "hra, CUDA graph"


def main() -> None:
    args = parse_sd1_options(__doc__, batch_size=1)
    pipe = load_pipe(args.base, args.device, args.dtype)
    variants = {"floor": make_frozen_step(weight_sharing_copy(pipe.unet), args.batch_size, args.side)}
    variants |= make_steps(pipe.unet, METHODS, args.rank, args.batch_size, args.side)
    graphs = captured(variants, args.device)
    with tempfile.TemporaryDirectory() as folder:
        pixels = args.side * pipe.vae_scale_factor
        config = train_config(args, method="hra", options={"rank": args.rank}, base=args.base, resolution=pixels,
                              flip=False, batch_size=args.batch_size, steps=1000)  # fmt: skip
        variants[TRAINER] = trainer_step(start_session(pipe, config, Path(folder)))
        seconds = time_interleaved(variants | graphs, args.rounds, minutes=args.minutes)
    limits, more = dict.fromkeys(variants, LIMIT), []
    if graphs:
        limits = {name: GRAPH_LIMIT for name in graphs if name != "floor, CUDA graph"}
        ratio = ratios(seconds[TRAINER], seconds[GRAPH])
        more = [Target.of(f"{TRAINER} ÷ {GRAPH}", ratio, TRAINER_LIMIT)]
    columns = ("step", "seconds", "÷ floor")
    publish_ratios(args, seconds, lambda name: "floor", columns, limits, more=more)


if __name__ == "__main__":
    main()
