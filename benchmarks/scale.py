"""Write docs/scale.md: what 1 to 100,000 users' adapters need, computed from the architectures and stored measurements.

python -m benchmarks.scale
"""

import functools
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator

from app.benchmarking.machine import markdown_table
from benchmarks.options import RESULTS
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.linear_map import matrix_shape
from hra_diffusion.adapters.methods import COMPARED
from hra_diffusion.adapters.targets import find_targets, target_layer
from hra_diffusion.files import read_json, write_text
from hra_diffusion.models.families.architectures import RELEASED, Architecture, on_meta
from training.presets import defaults

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
USERS = (100, 1_000, 10_000, 100_000)
GPU_GB, RESERVE_GB, HOST_GB = 80, 8, 64
"""Memory of the example GPU, what is kept of it for a batch's activations, and memory of the example host."""
PICTURE_STEPS = 25
PRICE = 2.0
"""Example price of a GPU-hour in dollars; an assumption, all costs are proportional to it."""

INTRODUCTION = """\
<!-- made by python -m benchmarks.scale -->

# Scale

What many users' adapters need, by formulas and measurements. *Computed* figures follow from the architectures and the
presets' ranks, on the denoiser's attention; *measured* ones name their benchmark, and hold for its machine.

Runs on many machines are described in [Clusters](cluster.md), serving in [Serve](serve.md)."""


class Size(NamedTuple):
    """Rank of an adapter, number of its parameters, and of the values of its prepared low-rank factors."""

    rank: int
    parameters: int
    prepared: int


Sizes = dict[str, dict[str, Size]]
"""By base and method."""


def page(results: Path = RESULTS) -> str:
    """Return docs/scale.md."""
    sizes = {name: {method: size_of(architecture, name, method) for method in COMPARED}
             for name, architecture in RELEASED.items()}  # fmt: skip
    return (
        "\n\n".join([INTRODUCTION, storage(sizes), memory(sizes), drawing(results), training(results), network(sizes)])
        + "\n"
    )


@functools.cache
def layer_shapes(architecture: Architecture) -> Counter[tuple[int, int]]:
    """Count the attention layers of the UNet by weight shape (d_out, d_in)."""
    unet = on_meta(architecture.build_denoiser)
    return Counter(matrix_shape(target_layer(unet, path)) for path in find_targets(unet, "attention"))


def size_of(architecture: Architecture, base: str, method: str) -> Size:
    """Return the size of an adapter with the Balanced preset."""
    options = defaults(base, method, "balanced")["options"]
    kind = registry.get_method(method)
    config: Any = kind.parse(options)
    small = kind.build(config, 64, 64, Generator()).low_rank(torch.zeros(64, 64))  # as wide as any layer's update
    parameters = prepared = 0
    for (d_out, d_in), count in layer_shapes(architecture).items():
        parameters += count * kind.trainable_values(config, d_in, d_out)
        prepared += count * (small.up.shape[1] * (d_out + d_in) + d_out * (small.scale is not None))
    return Size(config.rank, parameters, prepared)


def base_bytes(architecture: Architecture) -> int:
    """Return the size of a base model's weights in half precision."""
    parts = [
        on_meta(architecture.build_denoiser),
        on_meta(architecture.build_vae),
        *on_meta(architecture.build_encoders),
    ]
    return 2 * sum(parameter.numel() for part in parts for parameter in part.parameters())


def storage(sizes: Sizes) -> str:
    """Return the section on files."""
    rows = []
    for base, own in sizes.items():
        for method, size in own.items():
            megabytes = 4 * size.parameters / 1e6
            users = (_bytes(1e6 * megabytes * count) for count in USERS)
            rows.append(
                (RELEASED[base].name, method, size.rank, f"{size.parameters / 1e6:.2f}", f"{megabytes:.1f}", *users)
            )
    columns = ("base", "method", "rank", "parameters, million", "file, MB", *(f"{count:,} users" for count in USERS))
    return f"""\
## Storage

Computed: an adapter file holds its parameters in 32 bits, and some kilobytes of names. Ranks are those of the Balanced
preset.

{markdown_table(columns, rows)}

A training state holds the parameters and AdamW's two moments: 3 × the file. A run keeps two while it trains, one
afterwards, and none after `hra-diffusion runs --drop-states NAME`. The adapters of its checkpoints stay: a finished run
of 5 checkpoints takes 9 × the file, besides its photos and samples."""


def memory(sizes: Sizes) -> str:
    """Return the section on the memory of a server."""
    rows = []
    for base, own in sizes.items():
        weights = base_bytes(RELEASED[base])
        for method, size in own.items():
            each = 2 * size.prepared
            on_gpu, in_host = ((GPU_GB - RESERVE_GB) * 1e9 - weights) / each, HOST_GB * 1e9 / each
            counts = f"{int(on_gpu):,}", f"{int(in_host):,}"
            rows.append((RELEASED[base].name, method, f"{weights / 1e9:.1f}", f"{each / 1e6:.1f}", *counts))
    places = f"on a GPU of {GPU_GB} GB", f"in {HOST_GB} GB of host memory"
    columns = ("base", "method", "base, GB", "prepared adapter, MB", *places)
    return f"""\
## Memory

Computed: a server keeps an adapter as its prepared low-rank factors, in half precision. Those of HRA, HOFT and SHOFT
take twice as much as LoRA's of the same file size. {RESERVE_GB} GB of the GPU are kept for the activations of a batch.

{markdown_table(columns, rows)}

Adapters that are not in memory are read from their files when they are asked for."""


def drawing(results: Path) -> str:
    """Return the section on pictures per second."""
    served = read_json(results / "bench_serving.json")
    table = markdown_table(served["columns"], served["rows"]) if served else "Not measured."
    command = f"`{served['command']}`, {served['conditions']}." if served else "`python -m benchmarks.bench_serving`."
    gpu = read_json(results / "bench_inference-cuda.json")
    steps = {row[0]: float(row[1].split()[0]) for row in gpu["rows"]}
    rows = [(name, f"{seconds * 1000:.0f}", f"{1 / (PICTURE_STEPS * seconds):.2f}") for name, seconds in steps.items()]
    return f"""\
## Pictures per second

Measured on a CPU, with the embedded base model: {command}

{table}

On a GPU a server was not measured. Single pictures were, with an earlier version, without CUDA graphs:
{_conditions(gpu)}. Computed from it: pictures per second of {PICTURE_STEPS} steps, one after another, without text
encoder and VAE.

{markdown_table(("model", "a step, ms", "pictures per second"), rows)}

Batches are faster as long as a step waits for kernel launches; how much is not measured."""


def training(results: Path) -> str:
    """Return the section on trainings per hour."""
    measured = read_json(results / "bench_step-cuda.json")
    steps = defaults("sd1", "lora", "balanced")["steps"]
    rows = []
    for method, seconds, *_ in measured["rows"]:
        run = steps * float(seconds.split()[0])
        rows.append(
            (method, f"{run:.0f}", f"{3600 / run:.1f}", f"{1000 * run / 3600:.0f}", f"{1000 * run / 3600 * PRICE:.0f}")
        )
    columns = (
        "method",
        f"{steps} steps, s",
        "trainings per GPU-hour",
        "GPU-hours per 1,000",
        f"dollars per 1,000 at {PRICE:.0f} per GPU-hour",
    )
    return f"""\
## Trainings per hour

Computed from a step measured with an earlier version, without CUDA graphs: {_conditions(measured)}.
The Balanced preset has {steps} steps. Prior preservation, which doubles the pictures of a step, and the start of a
process come on top. The price of a GPU-hour is an example.

{markdown_table(columns, rows)}"""


def network(sizes: Sizes) -> str:
    """Return the section on transfers."""
    file = 4 * sizes["sd1"]["hra"].parameters
    return f"""\
## Network

Computed, for five photos of 3 MB and an HRA adapter of Stable Diffusion 1 ({file / 1e6:.1f} MB):

- A training receives 15 MB of photos and stores {_bytes(9 * file)}: 1,000 trainings per hour receive
  {15e9 * 8 / 3600 / 1e6:.0f} Mbit/s.
- A server that reads an adapter for every picture, the worst case, reads {file / 1e6:.1f} MB per picture.
- A picture of 512 × 512 pixels is about 0.5 MB as PNG: 10 pictures per second send 40 Mbit/s."""


def _conditions(measured: Any) -> str:
    return f"`{measured['command']}`, {measured['conditions']}, {measured['machine']['GPU']}"


def _bytes(value: float) -> str:
    """Return a size in MB, GB or TB."""
    unit, name = next((unit, name) for unit, name in ((1e12, "TB"), (1e9, "GB"), (0, "MB")) if value >= unit)
    return f"{value / (unit or 1e6):.1f} {name}"


if __name__ == "__main__":
    write_text(PAGE, page())
