"""Several adapters in one batch: six adapters and the base model generate four prompts each.

Generated in one batch, with one batch per adapter, and image by image.

    python -m benchmarks.bench_side_by_side [--device cuda] [--base toybox] [--side 16] [--image-steps 10] [--rounds 3]
"""

from functools import partial

import numpy as np
from PIL import Image

from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from benchmarks.models import attach_random, load_pipe
from benchmarks.options import parse_options
from benchmarks.report import Report, Target, describe_conditions, publish
from hra_diffusion.adapters.state import ActiveAdapters
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch

PROMPTS = ("a toy", "a toy in the snow", "a toy on the beach", "a toy on a cobblestone street")
METHODS = ("lora", "moslora", "hra", "hoft", "shoft", "hra")


def main() -> None:
    args = parse_options(__doc__, {"rounds": 3, "side": 16}, {"base": "sd1", "dtype": "float16", "side": 64},
                         image_steps=10, rank=8)  # fmt: skip
    pipe = load_pipe(args.base, args.device, args.dtype)
    adapters: list[ActiveAdapters] = [(), *(((name, 1.0),) for name in attach_random(pipe, METHODS, args.rank))]
    requests = [Request(prompt, 0, active) for active in adapters for prompt in PROMPTS]
    pixels = args.side * pipe.vae_scale_factor
    settings = Settings(steps=args.image_steps, width=pixels, height=pixels)
    images: dict[str, list[Image.Image]] = {}

    def generate(name: str, count: int) -> None:
        groups = [requests[i : i + count] for i in range(0, len(requests), count)]
        images[name] = [image for group in groups for image in generate_batch(pipe, group, settings, count)]

    counts = {"one batch": len(requests), "one batch per adapter": len(PROMPTS), "image by image": 1}
    variants = {name: partial(generate, name, count) for name, count in counts.items()}
    seconds = time_interleaved(variants, args.rounds, minutes=args.minutes)
    relative = {name: ratios(rounds, seconds["one batch"]) for name, rounds in seconds.items()}
    differences = {name: max_difference(variant, images["one batch"]) for name, variant in images.items()}
    rows = []
    for name, rounds in seconds.items():
        rate = median_with_range([len(requests) / s for s in rounds])
        rows.append((name, rate, median_with_range(relative[name], ".2f"), differences[name]))
    limit = 2.0 if args.device == "cuda" else 1.0
    targets = [
        Target.of(f"{name} ÷ one batch, time", relative[name], limit, at_least=True) for name in list(counts)[1:]
    ]
    targets += [Target("largest difference of a pixel, of 255", max(differences.values()), 1)]
    columns = ("images generated in", "images/s", "time ÷ one batch", "largest difference of a pixel, of 255")
    inputs = f"{len(adapters)} variants × {len(PROMPTS)} prompts, {args.image_steps} denoising steps, rank {args.rank}"
    publish(Report(describe_conditions(args, inputs, seconds), columns, rows, targets, raw=seconds), args)


def max_difference(images: list[Image.Image], others: list[Image.Image]) -> int:
    """Return the largest difference of a pixel's channel, of 255."""
    pairs = zip(images, others, strict=True)
    return max(int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max()) for a, b in pairs)


if __name__ == "__main__":
    main()
