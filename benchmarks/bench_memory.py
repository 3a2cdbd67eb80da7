"""Peak memory of training steps: UNet, adapter, gradients and optimiser state, each case in a process of its own.

    python -m benchmarks.bench_memory [--device cuda] [--side 64] [--bases "sd1 sdxl"]

On a GPU it is the allocated memory, on the CPU the resident memory, which includes the imported libraries. The latents
of SDXL have twice the side.
"""

from benchmarks.options import parse_options
from benchmarks.report import Report, Target, publish
from benchmarks.steps import step_memory
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
    ("sdxl", "hra", "bfloat16", "full", True),
    ("sdxl", "hra", "bfloat16", "int8", True),
    ("sdxl", "hra", "bfloat16", "nf4", True),
)
"""Base model, method, dtype, the base model's weights, gradient checkpointing."""
LIMITS = {("sd1", "full"): 4.0, ("sd1", "nf4"): 2.8, ("sdxl", "full"): 10.0, ("sdxl", "nf4"): 7.0}


def main() -> None:
    args = parse_options(__doc__, {"side": 64}, {"side": 64}, rank=8, bases="sd1 sdxl")
    rows, targets, kind = [], [], "allocated" if args.device == "cuda" else "resident"
    for base, method, dtype, weights, checkpointing in CASES:
        if base not in args.bases.split():
            continue
        side = args.side * (2 if base == "sdxl" else 1)
        case = (base, args.device, dtype, method, args.rank, 1, side, checkpointing, weights)
        peak, beyond_base = in_subprocess(step_memory, *case)
        rows.append((base, method, f"{8 * side} px", dtype, weights, "yes" if checkpointing else "no",
                     f"{peak:.2f}", f"{beyond_base:.2f}"))  # fmt: skip
        limit = LIMITS.get((base, weights))
        if limit and method == "hra" and dtype == "bfloat16" and checkpointing:
            targets.append(Target(f"{base}, {weights} weights, {kind}, GiB", peak, limit))
    columns = ("base", "method", "size", "dtype", "base weights", "checkpointing", "peak, GiB", "beyond the base, GiB")
    conditions = f"full-size UNets with random weights, batch 1, rank {args.rank}, {args.device}"
    publish(Report(conditions, columns, rows, targets), args)


if __name__ == "__main__":
    main()
