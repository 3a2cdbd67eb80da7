"""What test_processes.py runs in two processes: ``accelerate launch … two_processes.py CONFIG OUTPUT``.

Each scenario trains in a folder of its own, the first by the command line. The results of process N go to
``{output}/results-N.json``.
"""

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from app import cli
from hra_diffusion.libraries import BITSANDBYTES, PEFT, hide

hide(BITSANDBYTES, PEFT)

from training import config as configs
from training import samples
from training.data import class_images
from training.loop import train
from training.runs import checkpoint
from training.runs.events import Notice, Step
from training.session.model import Denoiser

RANK = int(os.environ["RANK"])
samples.SAMPLE_STEPS = class_images.CLASS_IMAGE_STEPS = 2


class Refused(torch.nn.Module):
    def __init__(self, *_, **__):
        raise AssertionError("it would broadcast all buffers, which quantised weights are, before every step")


torch.nn.parallel.DistributedDataParallel = Refused  # type: ignore[misc]


def fail_in_forward(rank, call, error):
    """Raise ``error`` in the given training pass of one process."""
    original, passes = Denoiser.forward, []

    def forward(self, *given):
        passes.append(given)
        if rank == RANK and len(passes) == call:
            raise error
        return original(self, *given)

    Denoiser.forward = forward
    return lambda: setattr(Denoiser, "forward", original)


def fail_in_checkpoint(rank, error):
    original = checkpoint.write_adapter

    def write(*given):
        raise error

    if rank == RANK:
        checkpoint.write_adapter = write
    return lambda: setattr(checkpoint, "write_adapter", original)


SCENARIOS = {
    "quantised": ({"base_weights": "int8"}, lambda: lambda: None),
    "memory": ({}, lambda: fail_in_forward(1, 2, torch.OutOfMemoryError("CUDA out of memory"))),
    "failure": ({}, lambda: fail_in_forward(1, 2, ZeroDivisionError("division by zero"))),
    "disk": ({}, lambda: fail_in_checkpoint(0, OSError("no space"))),
}


def run_command(config: Path, output: Path) -> str:
    """Run ``hra-diffusion train`` with samples and class images; return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command = ["train", "--config", str(config.with_name("command.yaml")), "--output", str(output / "command")]
        assert cli.main([*command, "--json"]) == 0
    return printed.getvalue()


def main(config: Path, output: Path) -> None:
    results: dict[str, Any] = {"command": run_command(config, output)}
    for name, (changes, inject) in SCENARIOS.items():
        events, start = [], time.monotonic()
        restore = inject()
        try:
            train(configs.read(config).model_copy(update=changes), output / name, [events.append])
            error = ""
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        restore()
        results[name] = {
            "error": error,
            "seconds": time.monotonic() - start,
            "losses": [event.loss for event in events if isinstance(event, Step)],
            "notices": [event.message for event in events if isinstance(event, Notice)],
        }
        (output / f"results-{RANK}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
