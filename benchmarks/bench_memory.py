"""Memory of training: peak of UNet, adapter, gradients and optimiser, each row in a process of its own.

    python -m benchmarks.bench_memory [--device cuda] [--side 64] [--bases "sd1 sdxl"]

On a GPU what is allocated; on the CPU the process's resident memory, imports and all, which is more. SDXL has twice the
side.
"""

from benchmarks.common import Report, Target, arguments, publish, step_memory
from training.memory.peak import in_subprocess

CASES = (
    ("sd1", "hra", "float32", "full", False),
    ("sd1", "hra", "float32", "full", True),
    ("sd1", "hra", "bfloat16", "full", False),
    ("sd1", "hra", "bfloat16", "full", True),
    ("sd1", "lora", "bfloat16", "full", True),
    ("sd1", "PEFT HRA", "bfloat16", "full", True),
    ("sd1", "hra", "bfloat16", "int8", True),
    ("sd1", "hra", "bfloat16", "nf4", True),
)
CASES += tuple(("sdxl", "hra", "bfloat16", weights, True) for weights in ("full", "int8", "nf4"))
LIMITS = {("sd1", "full"): 4.0, ("sd1", "nf4"): 2.8, ("sdxl", "full"): 10.0, ("sdxl", "nf4"): 7.0}


def main() -> None:
    given = arguments(__doc__, {"side": 64}, {"side": 64}, rank=8, bases="sd1 sdxl")
    rows, bars, kind = [], [], "allocated" if given.device == "cuda" else "resident"
    for base, method, dtype, weights, checkpointing in CASES:
        if base not in given.bases.split():
            continue
        side = given.side * (2 if base == "sdxl" else 1)
        case = (base, given.device, dtype, method, given.rank, 1, side, checkpointing, weights)
        peak, beyond = in_subprocess(step_memory, *case)
        rows.append((base, method, f"{8 * side} px", dtype, weights, "yes" if checkpointing else "no",
                     f"{peak:.2f}", f"{beyond:.2f}"))  # fmt: skip
        limit = LIMITS.get((base, weights))
        if limit and method == "hra" and dtype == "bfloat16" and checkpointing:
            bars.append(Target(f"{base}, {weights} weights, {kind}, GiB", peak, limit))
    columns = ("base", "method", "size", "dtype", "base weights", "checkpointing", "peak, GiB", "beyond the base")
    said = f"full-size UNets with random weights, batch 1, rank {given.rank}, {given.device}; one step a process"
    publish(Report(said, columns, rows, bars), given)


if __name__ == "__main__":
    main()
