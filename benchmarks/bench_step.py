"""Orthogonal methods at LoRA's price: one optimiser step with each method, as a part of LoRA's.

    python -m benchmarks.bench_step [--device cuda] [--base toybox] [--side 32] [--batch-size 1] [--rounds 5]

HRA also with the regulariser that Stable Diffusion's presets give it.
"""

from benchmarks.common import Bar, Report, arguments, conditions, load_unet, publish, step, steps
from hra_diffusion import registry
from training.measure import interleaved, ratios, spread
from training.presets import defaults

LIMIT = 1.10


def main() -> None:
    given = arguments(
        __doc__,
        {"base": "sd1", "side": 32, "rounds": 3},
        {"base": "sd1", "side": 64, "dtype": "bfloat16", "rounds": 20},
        batch_size=1,
        rank=8,
    )
    unet = load_unet(given.base, given.device, given.dtype)
    shape = given.rank, given.batch_size, given.side
    preset = {"orthogonality": defaults("sd1", "hra", "balanced")["options"]["orthogonality"]}
    contestants = steps(unet, registry.names(), *shape)
    contestants[f"hra, λ {preset['orthogonality']:g}"] = step(unet, "hra", *shape, **preset)
    spent = interleaved(contestants, given.rounds, minutes=given.minutes)
    against = {name: ratios(own, spent["lora"]) for name, own in spent.items()}
    rows = [(name, spread(own), spread(against[name], ".2f")) for name, own in spent.items()]
    bars = [Bar.of(f"{name} ÷ LoRA", own, LIMIT) for name, own in against.items() if name != "lora"]
    what = f"rank {given.rank}, {given.side}×{given.side} latents, batch {given.batch_size}"
    publish(Report(conditions(given, what, spent), ("method", "a step, s", "÷ LoRA"), rows, bars, raw=spent), given)


if __name__ == "__main__":
    main()
