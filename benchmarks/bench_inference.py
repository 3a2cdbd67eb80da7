"""Inference: an adapter live, and merged, as parts of the base alone, per denoising step with guidance and per picture.

python -m benchmarks.bench_inference [--device cuda] [--base toybox] [--side 32] [--rounds 5]
"""

from collections.abc import Callable

import torch

from benchmarks.common import Bar, Report, adapted, arguments, conditions, load_unet, publish
from hra_diffusion import attachment, registry
from training.measure import interleaved, ratios, spread, unet_inputs

LIVE, MERGED = 1.05, 1.01


def main() -> None:
    given = arguments(
        __doc__,
        {"base": "sd1", "side": 32, "rounds": 3},
        {"base": "sd1", "side": 64, "dtype": "float16", "rounds": 20},
        rank=8,
    )
    unet = load_unet(given.base, given.device, given.dtype).requires_grad_(False)
    models = {"base": unet} | {f"{name}, live": adapted(unet, name, given.rank)[0] for name in registry.names()}
    models["hra, merged"] = adapted(unet, "hra", given.rank)[0]
    attachment.merge(models["hra, merged"])
    spent = interleaved(
        {name: denoiser(model, given.side) for name, model in models.items()}, given.rounds, minutes=given.minutes
    )
    against = {name: ratios(own, spent["base"]) for name, own in spent.items()}
    rows = [(name, spread(own), spread(against[name], ".3f")) for name, own in spent.items()]
    bars = [
        Bar.of(f"{name} ÷ base", own, MERGED if "merged" in name else LIVE)
        for name, own in against.items()
        if name != "base"
    ]
    what = f"rank {given.rank}, {given.side}×{given.side} latents, one denoising step with guidance (batch 2)"
    publish(Report(conditions(given, what, spent), ("model", "a step, s", "÷ base"), rows, bars, raw=spent), given)


def denoiser(unet: torch.nn.Module, side: int) -> Callable[[], None]:
    """One call of the UNet as a denoising step with guidance makes it."""
    inputs, more = unet_inputs(unet, 2, side)

    @torch.no_grad()
    def step() -> None:
        unet(*inputs, **more)

    return step


if __name__ == "__main__":
    main()
