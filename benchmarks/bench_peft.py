"""Time of an optimiser step and peak memory, against PEFT's implementations.

Steps of all methods are interleaved; peak memory is that of a process per method.

    python -m benchmarks.bench_peft [--device cuda] [--base toybox] [--side 32] [--rounds 3]
"""

from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from benchmarks.models import PEFT_CONFIGS, load_unet
from benchmarks.options import parse_sd1_options
from benchmarks.report import Report, Target, describe_conditions, describe_inputs, publish
from benchmarks.steps import make_steps, step_memory
from training.memory.peak import in_subprocess

OURS = ("hra", "lora")


def main() -> None:
    args = parse_sd1_options(__doc__, batch_size=1)
    names = [*OURS, *PEFT_CONFIGS]
    model, shape = (args.base, args.device, args.dtype), (args.rank, args.batch_size, args.side)
    memory = {name: in_subprocess(step_memory, *model, name, *shape) for name in names}
    seconds = time_interleaved(make_steps(load_unet(*model), names, *shape), args.rounds, minutes=args.minutes)
    rows = []
    for name, rounds in seconds.items():
        relative = median_with_range(ratios(seconds["hra"], rounds), ".2f")
        peak, beyond_base = memory[name]
        rows.append((name, median_with_range(rounds), relative, f"{peak:.2f}", f"{beyond_base:.2f}"))
    columns = ("method", "seconds per step", "our HRA ÷ this", "peak, GiB", "beyond the base, GiB")
    conditions = describe_conditions(args, describe_inputs(args), seconds)
    publish(Report(conditions, columns, rows, compare(seconds, memory, args.device), raw=seconds), args)


def compare(seconds: dict[str, list[float]], memory: dict[str, tuple[float, float]], device: str) -> list[Target]:
    """Compare our HRA and LoRA with PEFT's."""
    peak, beyond_base = (ours / theirs for ours, theirs in zip(memory["hra"], memory["PEFT HRA"], strict=True))
    return [
        Target.of("HRA ÷ PEFT's, time", ratios(seconds["hra"], seconds["PEFT HRA"]), 0.4 if device == "cpu" else 0.2),
        Target("HRA ÷ PEFT's, peak memory", peak, 0.4),
        Target("HRA ÷ PEFT's, memory beyond the base", beyond_base, 0.4),
        Target.of("LoRA ÷ PEFT's, time", ratios(seconds["lora"], seconds["PEFT LoRA"]), 1.0),
    ]


if __name__ == "__main__":
    main()
