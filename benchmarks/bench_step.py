"""One optimiser step with each method, relative to LoRA's.

    python -m benchmarks.bench_step [--device cuda] [--base toybox] [--side 32] [--batch-size 1] [--rounds 5]

HRA is also measured with the orthogonality penalty that the Stable Diffusion presets use.
"""

from app.benchmarking.timing import time_interleaved
from benchmarks.models import load_unet
from benchmarks.options import parse_sd1_options
from benchmarks.report import publish_ratios
from benchmarks.steps import make_step, make_steps
from hra_diffusion.adapters import registry
from training.presets import defaults

LIMIT = 1.10


def main() -> None:
    args = parse_sd1_options(__doc__, batch_size=1)
    unet = load_unet(args.base, args.device, args.dtype)
    shape = args.rank, args.batch_size, args.side
    preset = {"orthogonality": defaults("sd1", "hra", "balanced")["options"]["orthogonality"]}
    variants = make_steps(unet, registry.method_names(), *shape)
    variants[f"hra, λ {preset['orthogonality']:g}"] = make_step(unet, "hra", *shape, **preset)
    seconds = time_interleaved(variants, args.rounds, minutes=args.minutes)
    publish_ratios(args, seconds, "lora", ("method", "seconds per step", "÷ LoRA"), dict.fromkeys(seconds, LIMIT))


if __name__ == "__main__":
    main()
