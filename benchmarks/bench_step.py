"""What one training step (forward and backward) costs with each method, as a part of LoRA's, in one interleaved run.

    python benchmarks/bench_step.py [--base toybox] [--batch-size 8] [--rounds 9] [--device cpu]

PEFT's LoRA and HRA stand beside ours, on the same base, with the same rank and layers.
"""

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable

import torch
from peft import HRAConfig, LoraConfig, inject_adapter_in_model

from hra_diffusion import attachment, pipeline, registry

RANK = 8
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=pipeline.TOYBOX)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    unet = pipeline.load_base(arguments.base, arguments.device).unet
    steps = contestants(unet, arguments.batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.rounds + 1):
        for name, step in steps.items():
            spent = timed(step, arguments.device)
            if turn:  # the first turn warms up
                seconds[name].append(spent)
    print(table(seconds, arguments))


def contestants(unet: torch.nn.Module, batch_size: int) -> dict[str, Callable[[], None]]:
    """One step of each method, ours and PEFT's, on copies of the UNet."""
    models = {}
    for name in registry.names():
        models[name] = copy.deepcopy(unet)
        attachment.attach(models[name], name, {"rank": RANK})
    peft = {
        "PEFT lora": LoraConfig(r=RANK, target_modules=TARGETS),
        "PEFT hra": HRAConfig(r=RANK, target_modules=TARGETS),
    }
    for name, config in peft.items():
        model = copy.deepcopy(unet).requires_grad_(False)
        models[name] = inject_adapter_in_model(config, model, "default")
    return {name: stepper(model, batch_size) for name, model in models.items()}


def stepper(unet: torch.nn.Module, batch_size: int) -> Callable[[], None]:
    """Forward and backward on fixed inputs of the base's own size."""
    config, device = unet.config, next(unet.parameters()).device
    shape = (batch_size, config.in_channels, config.sample_size, config.sample_size)
    latents = torch.randn(shape, device=device)
    text = torch.randn(batch_size, 32, config.cross_attention_dim, device=device)
    timesteps = torch.randint(1000, (batch_size,), device=device)

    def step() -> None:
        unet(latents, timesteps, text).sample.square().mean().backward()

    return step


def timed(step: Callable[[], None], device: str) -> float:
    """Seconds of one step, all work of the device done."""
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def table(seconds: dict[str, list[float]], arguments: argparse.Namespace) -> str:
    """Medians, spread and ratios to our LoRA."""
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    lines = [
        f"{arguments.base}, batch {arguments.batch_size}, rank {RANK}, float32; torch {torch.__version__}, {where}, "
        f"{platform.machine()}; {arguments.rounds} interleaved rounds",
        "",
        "| method | median ms | least to most | ÷ LoRA |",
        "|---|---|---|---|",
    ]
    lora = statistics.median(seconds["lora"])
    for name, spent in seconds.items():
        median = statistics.median(spent)
        lines.append(
            f"| {name} | {median * 1e3:.0f} | {min(spent) * 1e3:.0f} to {max(spent) * 1e3:.0f} | {median / lora:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
