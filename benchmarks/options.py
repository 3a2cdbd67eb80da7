"""Command-line options of the benchmarks."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def parse_options(doc: str | None, cpu: Mapping[str, Any], cuda: Mapping[str, Any], **both: Any) -> argparse.Namespace:
    """Parse a benchmark's options; ``cpu`` and ``cuda`` hold the defaults for each device, ``both`` those for both."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result as JSON")
    device = cuda if "cuda" in sys.argv or "--device=cuda" in sys.argv else cpu
    for name, value in {"base": "toybox", "dtype": "float32", "rounds": 5, "minutes": 3.0, **device, **both}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}")
    return parser.parse_args()


def parse_sd1_options(doc: str | None, cuda_dtype: str = "bfloat16", **both: Any) -> argparse.Namespace:
    """Parse the options of a benchmark of steps of Stable Diffusion 1.5's UNet, with latents sized for the device."""
    cuda = {"side": 64, "dtype": cuda_dtype, "rounds": 20}
    return parse_options(doc, {"side": 32, "rounds": 3}, cuda, **({"base": "sd1", "rank": 8} | both))
