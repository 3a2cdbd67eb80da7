"""Inject faults and print the table of docs/reliability.md: ``python -m faults.table [TRIES [PREFIX]]``."""

import sys
import tempfile
from pathlib import Path

from faults.faults import Bench, all_faults


def main(tries: str = "25", prefix: str = "") -> None:
    """Print a row for each fault whose name begins with ``prefix``. Exits with 1 if anything was lost."""
    print("| fault | tries | lost | longest recovery |\n|---|---|---|---|")
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # another user reads its inputs
        for name, inject in all_faults(Bench(Path(folder)), int(tries)).items():
            if name.startswith(prefix):
                row = inject()
                lost += row.lost
                print(f"| {row.fault} | {row.tries} | {row.lost} | {row.seconds:.1f} s |", flush=True)
    sys.exit(bool(lost))


if __name__ == "__main__":
    main(*sys.argv[1:])
