"""Whole images, one at a time: with the base model, with a live adapter, and with diffusers' own pipeline.

    python -m benchmarks.bench_generate [--device cuda] [--base toybox] [--side 32] [--image-steps 4] [--rounds 5]

Prompt, scheduler (DPM-Solver++), number of denoising steps and guidance are the same everywhere. On a GPU our images
are also generated without CUDA graphs (``cuda_graph="off"``).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

import hra_diffusion as hra
from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from app.benchmarking.workloads import weight_sharing_copy
from benchmarks.models import PEFT_CONFIGS, attach_random, load_pipe
from benchmarks.options import parse_options
from benchmarks.report import Report, Target, describe_conditions, publish

METHODS, PROMPT, GUIDANCE = ("lora", "hra"), "a toy in the snow", 7.5
THEIRS, THEIR_LORA = "diffusers' pipeline, base", "diffusers' pipeline, PEFT LoRA"
LIVE, SPEEDUP = {"cpu": 1.05, "cuda": 1.02}, {"cpu": 0.95, "cuda": 1.5}
"""Limits by device: a live adapter's time relative to the base model's, and diffusers' time relative to ours."""


def main() -> None:
    cuda = {"base": "sd1", "dtype": "float16", "side": 64, "rounds": 10, "image_steps": 20}
    cpu = {"base": "sd1", "side": 32, "rounds": 3, "image_steps": 4}
    args = parse_options(__doc__, cpu, cuda, rank=8)
    pipe = load_pipe(args.base, args.device, args.dtype)
    pixels = args.side * pipe.vae_scale_factor
    theirs = diffusers_images(pipe, pixels, args.image_steps, args.rank)
    live = {
        f"{method}, live": name for method, name in zip(METHODS, attach_random(pipe, METHODS, args.rank), strict=True)
    }
    settings = hra.Settings(args.image_steps, GUIDANCE, "dpm++", pixels, pixels)
    variants = our_images(pipe, live, settings) | theirs
    if args.device == "cuda":
        variants |= our_images(pipe, live, settings, cuda_graph="off")
    seconds = time_interleaved(variants, args.rounds, minutes=args.minutes)
    rows = [
        (name, median_with_range(rounds), median_with_range(ratios(rounds, seconds["base"]), ".3f"),
         median_with_range(ratios(seconds[THEIRS], rounds), ".2f"))
        for name, rounds in seconds.items()
    ]  # fmt: skip
    targets = [Target.of(f"{name} ÷ base", ratios(seconds[name], seconds["base"]), LIVE[args.device])
               for name in live]  # fmt: skip
    for ours, other in (("base", THEIRS), ("lora, live", THEIR_LORA)):
        targets.append(
            Target.of(f"{other} ÷ {ours}", ratios(seconds[other], seconds[ours]), SPEEDUP[args.device], True)
        )
    columns = ("images", "seconds per image", "÷ base", "diffusers' pipeline ÷ this")
    inputs = f"{pixels} px, {args.image_steps} denoising steps, guidance, batch 1, rank {args.rank}"
    publish(Report(describe_conditions(args, inputs, seconds), columns, rows, targets, raw=seconds), args)


def our_images(
    pipe: Any, live: Mapping[str, str], settings: hra.Settings, **options: str
) -> dict[str, Callable[[], object]]:
    """Return functions that generate an image with the base model and with each live adapter, given by label."""
    adapters = {"base": {}} | {label: {name: 1.0} for label, name in live.items()}
    suffix = ", no CUDA graph" if options else ""
    return {
        label + suffix: partial(hra.generate, pipe, PROMPT, strengths, settings=settings, **options)
        for label, strengths in adapters.items()
    }


def diffusers_images(
    pipe: StableDiffusionPipeline, pixels: int, steps: int, rank: int
) -> dict[str, Callable[[], object]]:
    """Return functions that generate an image with diffusers' pipeline, without an adapter and with PEFT's LoRA."""
    base, adapted = weight_sharing_copy(pipe.unet), weight_sharing_copy(pipe.unet)
    adapted.add_adapter(PEFT_CONFIGS["PEFT LoRA"](rank))

    def image(unet: Any) -> Callable[[], object]:
        theirs = type(pipe)(**pipe.components | {"unet": unet}, requires_safety_checker=False)
        theirs.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        theirs.set_progress_bar_config(disable=True)
        return lambda: theirs(PROMPT, pixels, pixels, steps, guidance_scale=GUIDANCE)

    return {THEIRS: image(base), THEIR_LORA: image(adapted)}


if __name__ == "__main__":
    main()
