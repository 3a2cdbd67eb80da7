"""Near the floor: a training step, and the trainer's own, as parts of what no adapter could do without.

The floor is the frozen UNet forward, and backward through the activations alone, back to the first attention.

    python -m benchmarks.bench_floor [--device cuda] [--base toybox] [--side 32] [--batch-size 1] [--rounds 5]
"""

import tempfile
from pathlib import Path

from benchmarks.common import (
    Bar,
    Report,
    arguments,
    conditions,
    load_pipe,
    publish,
    start_session,
    steps,
    train_config,
)
from training.loop import train_step
from training.measure import bare_pass, interleaved, ratios, spread, twin

METHODS, LIMIT = ("lora", "hra", "hoft"), 1.15


def main() -> None:
    given = arguments(
        __doc__,
        {"base": "sd1", "side": 32, "rounds": 3},
        {"base": "sd1", "side": 64, "dtype": "bfloat16", "rounds": 20},
        batch_size=1,
        rank=8,
    )
    pipe = load_pipe(given.base, given.device, given.dtype)
    contestants = {"floor": bare_pass(twin(pipe.unet), given.batch_size, given.side)}
    contestants |= steps(pipe.unet, METHODS, given.rank, given.batch_size, given.side)
    with tempfile.TemporaryDirectory() as folder:
        pixels = given.side * pipe.vae_scale_factor
        config = train_config(given, method="hra", options={"rank": given.rank}, base=given.base, resolution=pixels,
                              flip=False, batch_size=given.batch_size, steps=1000)  # fmt: skip
        session = start_session(pipe, config, Path(folder))
        contestants["the trainer, hra"] = lambda: train_step(session, config.learning_rate)
        spent = interleaved(contestants, given.rounds, minutes=given.minutes)
    against = {name: ratios(own, spent["floor"]) for name, own in spent.items()}
    rows = [(name, spread(own), spread(against[name], ".2f")) for name, own in spent.items()]
    bars = [Bar.of(f"{name} ÷ floor", own, LIMIT) for name, own in against.items() if name != "floor"]
    what = f"rank {given.rank}, {given.side}×{given.side} latents, batch {given.batch_size}"
    publish(Report(conditions(given, what, spent), ("step", "s", "÷ floor"), rows, bars, raw=spent), given)


if __name__ == "__main__":
    main()
