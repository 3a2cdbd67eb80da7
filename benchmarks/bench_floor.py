"""Near the floor: a training step, and the trainer's own, as parts of what no adapter could do without.

The floor is the frozen UNet forward, and backward through the activations alone, back to the first attention.

    python -m benchmarks.bench_floor [--device cuda] [--base toybox] [--side 32] [--batch-size 1] [--rounds 5]
"""

import tempfile
from pathlib import Path

from app.benchmarking.timing import time_interleaved
from app.benchmarking.workloads import make_frozen_step, weight_sharing_copy
from benchmarks.common import load_pipe, publish_ratios, sd1_arguments, start_session, steps, train_config
from training.step import train_step

METHODS, LIMIT = ("lora", "hra", "hoft"), 1.15


def main() -> None:
    given = sd1_arguments(__doc__, batch_size=1)
    pipe = load_pipe(given.base, given.device, given.dtype)
    variants = {"floor": make_frozen_step(weight_sharing_copy(pipe.unet), given.batch_size, given.side)}
    variants |= steps(pipe.unet, METHODS, given.rank, given.batch_size, given.side)
    with tempfile.TemporaryDirectory() as folder:
        pixels = given.side * pipe.vae_scale_factor
        config = train_config(given, method="hra", options={"rank": given.rank}, base=given.base, resolution=pixels,
                              flip=False, batch_size=given.batch_size, steps=1000)  # fmt: skip
        session = start_session(pipe, config, Path(folder))
        variants["the trainer, hra"] = lambda: train_step(session, config.learning_rate)
        spent = time_interleaved(variants, given.rounds, minutes=given.minutes)
    publish_ratios(given, spent, "floor", ("step", "s", "÷ floor"), dict.fromkeys(spent, LIMIT))


if __name__ == "__main__":
    main()
