"""Against PEFT: time of an optimiser step, all methods in turn, and peak memory, each method in a process of its own.

python -m benchmarks.bench_peft [--device cuda] [--base toybox] [--side 32] [--rounds 3]
"""

from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from benchmarks.common import (
    PEFT,
    Report,
    Target,
    conditions,
    load_unet,
    publish,
    sd1_arguments,
    shapes,
    step_memory,
    steps,
)
from training.memory.peak import in_subprocess

OURS = ("hra", "lora")


def main() -> None:
    given = sd1_arguments(__doc__, batch_size=1)
    names = [*OURS, *PEFT]
    shared = given.base, given.device, given.dtype
    peaks = {n: in_subprocess(step_memory, *shared, n, given.rank, given.batch_size, given.side) for n in names}
    unet = load_unet(*shared)
    spent = time_interleaved(
        steps(unet, names, given.rank, given.batch_size, given.side), given.rounds, minutes=given.minutes
    )
    rows = [
        (
            name,
            median_with_range(own),
            median_with_range(ratios(spent["hra"], own), ".2f"),
            f"{peaks[name][0]:.2f}",
            f"{peaks[name][1]:.2f}",
        )
        for name, own in spent.items()
    ]
    columns = ("method", "a step, s", "our HRA ÷ it", "peak, GiB", "of that beyond the base")
    report = Report(conditions(given, shapes(given), spent), columns, rows, bars(spent, peaks, given.device), raw=spent)
    publish(report, given)


def bars(spent: dict[str, list[float]], peaks: dict[str, tuple[float, float]], device: str) -> list[Target]:
    """Ours as parts of PEFT's."""
    time = {ours: ratios(spent[ours], spent[theirs]) for ours, theirs in (("hra", "PEFT HRA"), ("lora", "PEFT LoRA"))}
    whole, beyond = (ours / theirs for ours, theirs in zip(peaks["hra"], peaks["PEFT HRA"], strict=True))
    return [
        Target.of("HRA ÷ PEFT's, time", time["hra"], 0.4 if device == "cpu" else 0.2),
        Target("HRA ÷ PEFT's, peak memory", whole, 0.4),
        Target("HRA ÷ PEFT's, memory beyond the base", beyond, 0.4),
        Target.of("LoRA ÷ PEFT's, time", time["lora"], 1.0),
    ]


if __name__ == "__main__":
    main()
