"""Orthogonal methods at LoRA's price: one optimiser step with each method, as a part of LoRA's.

    python -m benchmarks.bench_step [--device cuda] [--base toybox] [--side 32] [--batch-size 1] [--rounds 5]

HRA also with the regulariser that Stable Diffusion's presets give it.
"""

from app.benchmarking.timing import time_interleaved
from benchmarks.common import load_unet, publish_ratios, sd1_arguments, step, steps
from hra_diffusion.adapters import registry
from training.presets import defaults

LIMIT = 1.10


def main() -> None:
    given = sd1_arguments(__doc__, batch_size=1)
    unet = load_unet(given.base, given.device, given.dtype)
    shape = given.rank, given.batch_size, given.side
    preset = {"orthogonality": defaults("sd1", "hra", "balanced")["options"]["orthogonality"]}
    variants = steps(unet, registry.method_names(), *shape)
    variants[f"hra, λ {preset['orthogonality']:g}"] = step(unet, "hra", *shape, **preset)
    spent = time_interleaved(variants, given.rounds, minutes=given.minutes)
    publish_ratios(given, spent, "lora", ("method", "a step, s", "÷ LoRA"), dict.fromkeys(spent, LIMIT))


if __name__ == "__main__":
    main()
