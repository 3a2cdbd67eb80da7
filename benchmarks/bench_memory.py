"""Memory of training: peak of UNet, adapter, gradients and optimiser, each row in a process of its own.

    python -m benchmarks.bench_memory [--device cuda] [--side 64]

On a GPU what is allocated, and also SDXL at 1024 px; on the CPU the process's resident memory, imports and all.
"""

from benchmarks.common import Bar, Report, arguments, memory_of_a_step, publish
from training.measure import apart

CASES = (
    ("sd1", "hra", "float32", False),
    ("sd1", "hra", "float32", True),
    ("sd1", "hra", "bfloat16", False),
    ("sd1", "hra", "bfloat16", True),
    ("sd1", "lora", "bfloat16", True),
    ("sd1", "PEFT HRA", "bfloat16", True),
)
LARGE = (("sdxl", "hra", "bfloat16", True), ("sdxl", "lora", "bfloat16", True))
LIMITS = {"sd1": 4.0, "sdxl": 10.0}


def main() -> None:
    given = arguments(__doc__, {"side": 64}, {"side": 64}, rank=8)
    rows, bars = [], []
    for base, method, dtype, checkpointing in CASES + LARGE * (given.device == "cuda"):
        side = given.side * (2 if base == "sdxl" else 1)
        peak, beyond = apart(memory_of_a_step, base, given.device, dtype, method, given.rank, 1, side, checkpointing)
        rows.append((base, method, f"{8 * side} px", dtype, "yes" if checkpointing else "no",
                     f"{peak:.2f}", f"{beyond:.2f}"))  # fmt: skip
        if given.device == "cuda" and method == "hra" and dtype == "bfloat16" and checkpointing:
            bars.append(Bar(f"{base}, GiB", peak, LIMITS[base]))
    columns = ("base", "method", "size", "dtype", "checkpointing", "peak, GiB", "of that beyond the base")
    said = f"full-size UNets with random weights, batch 1, rank {given.rank}, {given.device}; one step a process"
    notes = ["A quantised base: not measured, there is none in this project yet."]
    if given.device == "cpu":
        notes.append("SDXL: not measured (GPU only). The bars are of a GPU's memory.")
    publish(Report(said, columns, rows, bars, notes), given)


if __name__ == "__main__":
    main()
