"""``python tests/fuzz``: mutate inputs of all kinds, and print a table of how they end."""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import harness  # noqa: E402

COUNTS = {"own adapters": 35_000, "kohya, diffusers, LyCORIS": 40_000, "PEFT folders": 25_000, "checkpoints": 5_000,
          "images": 20_000, "PNG settings": 20_000, "configurations": 20_000, "patterns": 20_000,
          "API calls": 20_000}  # fmt: skip
"""Inputs of each kind in the full run: 100,000 adapter files and 20,000 images."""


def main() -> int:
    parser = argparse.ArgumentParser("fuzz", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="share of the full counts (default 1)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default 0)")
    parser.add_argument("--seconds", type=float, default=1e9, help="limit for each kind (default: none)")
    parser.add_argument("--kind", choices=tuple(COUNTS), nargs="+", default=list(COUNTS))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        spans, log, seconds = arguments.child
        harness.child(json.loads(spans), Path(log), float(seconds))
        return 0
    first = arguments.first
    spans = {kind: (first, first + round(COUNTS[kind] * arguments.share)) for kind in arguments.kind}
    results = harness.run(spans, arguments.seconds)
    print(results.table())
    return bool(results.faults)


if __name__ == "__main__":
    sys.exit(main())
