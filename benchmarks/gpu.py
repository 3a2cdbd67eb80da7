"""All benchmarks that need a GPU, within eight minutes: ``benchmarks/gpu.sh [--output FOLDER] [--smoke]``.

Each part is a benchmark in a process of its own with a time limit, the most valuable first. Its result is written to
the folder as JSON; a part whose result is there is skipped, so that an interrupted call can be repeated. To publish the
results, copy them to benchmarks/results and run ``python -m benchmarks.tables``.

No network is used. Needed are PyTorch with CUDA and the packages in PACKAGES; the first lines of the output say which
versions were found and what is missing. With bitsandbytes, 8-bit AdamW is measured, too. The module itself needs the
standard library alone. In a copy without Git, set the environment variable COMMIT to the commit's hash.

--smoke: run every part on the CPU, with narrow models and few rounds, to know that it works.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 480.0
PACKAGES = (
    "hra-diffusion", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "pillow", "numpy",
    "pydantic", "pyyaml", "psutil", "tqdm", "lazy-loader",
)  # fmt: skip
OPTIONAL = ("bitsandbytes",)


@dataclass(frozen=True)
class Part:
    """A benchmark, its time limit in seconds, its options on a GPU, and those for ``--smoke``."""

    name: str
    seconds: float
    options: str
    smoke: str


TINY = "--base narrow-sd1 --side 8 --rounds 1 --minutes 0"
PARTS = (
    Part("bench_step", 40, "--rounds 20 --minutes 0.3", TINY),
    Part("bench_floor", 40, "--rounds 20 --minutes 0.3", TINY),
    Part("bench_peft", 80, "--rounds 10 --minutes 0.15", "--bases narrow-sd1 --side 8 --rounds 1 --minutes 0"),
    Part("bench_klein", 60, "--rounds 3 --minutes 0.2", "--bases narrow-klein --side 4 --rounds 1 --minutes 0"),
    Part("bench_generate", 40, "--rounds 10 --minutes 0.4", f"{TINY} --image-steps 1"),
    Part("bench_inference", 30, "--rounds 20 --minutes 0.15", TINY),
    Part("bench_side_by_side", 40, "--image-steps 5 --rounds 3 --minutes 0.4", f"{TINY} --image-steps 1"),
    Part("bench_end_to_end", 65, "--rounds 0 --large-rounds 5 --minutes 0.2 --whole-steps 400",
         "--rounds 0 --large narrow-sd1 --resolution 64 --large-rounds 1 --whole-steps 2 --minutes 0"),
    Part("bench_fit", 45, "--resolution 512 --batch-size 1", "--resolution 64 --batch-size 2 --limits 1.5GB"),
    Part("bench_serving", 40, "--distinct 1,8,64 --minutes 0.1 --pictures 32",
         f"{TINY} --image-steps 1 --distinct 1,2 --pictures 4 --clients 2"),
)  # fmt: skip
"""All parts, in the order of their value."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts whose results are missing; return the number of parts without a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "gpu", help="folder of the results")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time for all parts, default: {SECONDS:g}")
    parser.add_argument("--smoke", action="store_true", help="run every part briefly on the CPU")
    args = parser.parse_args(argv)
    if not check_packages():
        return len(PARTS)
    return run_parts(PARTS, args.output.resolve(), args.seconds, args.smoke)


def check_packages() -> bool:
    """Print the versions of all packages; return whether the required ones are installed."""
    missing = []
    for name in (*PACKAGES, *OPTIONAL):
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    required = [name for name in missing if name in PACKAGES]
    print(f"missing: {', '.join(missing) or 'nothing'}", flush=True)
    return not required


def run_parts(parts: Sequence[Part], output: Path, seconds: float, smoke: bool) -> int:
    """Run parts for at most ``seconds`` in all; return the number of parts without a result."""
    output.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + seconds, 0
    for part in parts:
        result, left = output / f"{part.name}{'' if smoke else '-cuda'}.json", end - time.monotonic()
        if result.exists():
            print(f"{part.name}: measured already", flush=True)
            continue
        outcome = run_part(part, output, min(part.seconds, left), smoke) if left > 0 else "no time left"
        failed += not result.exists()
        print(f"{part.name}: {outcome}", flush=True)
    return failed


def run_part(part: Part, output: Path, seconds: float, smoke: bool) -> str:
    """Run a part in a process of its own, and return how it ended."""
    options = part.smoke if smoke else f"--device cuda {part.options}"
    command = [sys.executable, "-m", f"benchmarks.{part.name}", *options.split(), "--output", str(output)]
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        process.wait()
        return f"stopped after its limit of {seconds:.0f} s"
    return f"exit code {code} after {time.monotonic() - start:.0f} s"


def environment() -> dict[str, str]:
    """Return the environment of a part: without the hub, and without a CUDA compiler.

    PEFT would compile an extension for BOFT with it, which takes a minute; BOFT also runs without.
    """
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "CUDA_HOME": os.devnull}


if __name__ == "__main__":
    sys.exit(main())
