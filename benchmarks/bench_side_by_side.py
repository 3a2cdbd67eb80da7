"""Side by side in one batch: six adapters and the base by four prompts, together, and one after another.

python -m benchmarks.bench_side_by_side [--device cuda] [--base toybox] [--picture-steps 10] [--rounds 3]
"""

from functools import partial

import numpy as np

from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from benchmarks.common import Report, Target, arguments, attach_random, conditions, load_pipe, publish
from hra_diffusion.adapters.state import ActiveAdapters
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch

PROMPTS = ("a toy", "a toy in the snow", "a toy on the beach", "a toy on a cobblestone street")
METHODS = ("lora", "moslora", "hra", "hoft", "shoft", "hra")


def main() -> None:
    given = arguments(__doc__, {"rounds": 3}, {"base": "sd1", "dtype": "float16"}, picture_steps=10, rank=8)
    pipe = load_pipe(given.base, given.device, given.dtype)
    mixes: list[ActiveAdapters] = [(), *(((name, 1.0),) for name in attach_random(pipe, METHODS, given.rank))]
    requests = [Request(prompt, 0, mix) for mix in mixes for prompt in PROMPTS]
    settings = Settings(steps=given.picture_steps)
    drawn: dict[str, list] = {}

    def by_groups_of(count: int, way: str) -> None:
        groups = [requests[i : i + count] for i in range(0, len(requests), count)]
        drawn[way] = [picture for group in groups for picture in generate_batch(pipe, group, settings, count)]

    counts = {"together": len(requests), "an adapter after another": len(PROMPTS), "a picture after another": 1}
    spent = time_interleaved(
        {way: partial(by_groups_of, count, way) for way, count in counts.items()}, given.rounds, minutes=given.minutes
    )
    faster = {way: ratios(own, spent["together"]) for way, own in spent.items()}
    apart = {way: difference(pictures, drawn["together"]) for way, pictures in drawn.items()}
    rows = [
        (way, median_with_range([len(requests) / s for s in own]), median_with_range(faster[way], ".2f"), apart[way])
        for way, own in spent.items()
    ]
    limit = 2.0 if given.device == "cuda" else 1.0
    bars = [Target.of(f"together against {way}", faster[way], limit, at_least=True) for way in list(counts)[1:]]
    bars += [Target("pixels apart, of 255", max(apart.values()), 1)]
    columns = ("way", "pictures/s", "time ÷ together", "pixels at most apart, of 255")
    what = f"{len(mixes)} columns × {len(PROMPTS)} prompts, {given.picture_steps} denoising steps, rank {given.rank}"
    publish(Report(conditions(given, what, spent), columns, rows, bars, raw=spent), given)


def difference(pictures: list, others: list) -> int:
    """The largest difference of any pixel, of 255."""
    pairs = zip(pictures, others, strict=True)
    return max(int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max()) for a, b in pairs)


if __name__ == "__main__":
    main()
