"""Training steps relative to a lower bound, the frozen UNet's own forward and backward pass.

The backward pass flows through the activations alone, back to the first attention layer.

    python -m benchmarks.bench_floor [--device cuda] [--base toybox] [--side 32] [--batch-size 1] [--rounds 5]
"""

import tempfile
from pathlib import Path

from app.benchmarking.timing import time_interleaved
from app.benchmarking.workloads import make_frozen_step, weight_sharing_copy
from benchmarks.models import load_pipe
from benchmarks.options import parse_sd1_options
from benchmarks.report import publish_ratios
from benchmarks.steps import make_steps, start_session, train_config, trainer_step

METHODS, LIMIT = ("lora", "hra", "hoft"), 1.15


def main() -> None:
    args = parse_sd1_options(__doc__, batch_size=1)
    pipe = load_pipe(args.base, args.device, args.dtype)
    variants = {"floor": make_frozen_step(weight_sharing_copy(pipe.unet), args.batch_size, args.side)}
    variants |= make_steps(pipe.unet, METHODS, args.rank, args.batch_size, args.side)
    with tempfile.TemporaryDirectory() as folder:
        pixels = args.side * pipe.vae_scale_factor
        config = train_config(args, method="hra", options={"rank": args.rank}, base=args.base, resolution=pixels,
                              flip=False, batch_size=args.batch_size, steps=1000)  # fmt: skip
        session = start_session(pipe, config, Path(folder))
        variants["the trainer, hra"] = trainer_step(session)
        seconds = time_interleaved(variants, args.rounds, minutes=args.minutes)
    publish_ratios(args, seconds, "floor", ("step", "seconds", "÷ floor"), dict.fromkeys(seconds, LIMIT))


if __name__ == "__main__":
    main()
