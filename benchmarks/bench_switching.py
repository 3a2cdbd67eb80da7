"""Switching: activate another adapter that is on the pipeline, and load one from disk, against diffusers' own ways.

    python -m benchmarks.bench_switching [--device cuda] [--base toybox] [--rounds 7]

A base's weights are read to check a file against them when the first one is loaded, and what was found is kept: the
first load has a row of its own.
"""

import itertools
import tempfile
from pathlib import Path

from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from app.benchmarking.workloads import weight_sharing_copy
from benchmarks.common import Report, Target, arguments, attach_random, conditions, load_pipe, publish
from hra_diffusion import interop, pipeline
from hra_diffusion.adapters import fingerprint

ACTIVATE_MS, LOAD = 10, 0.5


def main() -> None:
    given = arguments(__doc__, {"base": "sd1", "rounds": 7}, {"base": "sd1", "dtype": "float16", "rounds": 20}, rank=8)
    ours = load_pipe(given.base, given.device, given.dtype)
    theirs = type(ours)(**{**ours.components, "unet": weight_sharing_copy(ours.unet)}, requires_safety_checker=False)
    with tempfile.TemporaryDirectory() as folder:
        names, files = attach_random(ours, ["lora", "lora", "hra"], given.rank), {}
        for name in names:
            files[name] = Path(folder) / f"{name}.safetensors"
            pipeline.save(ours, files[name], name)
            plain = interop.export(ours, name, "diffusers", Path(folder) / f"{name}-plain.safetensors").path
            theirs.load_lora_weights(str(plain), adapter_name=name)
            files[f"{name} plain"] = plain

        def first_load() -> None:
            fingerprint._probes.clear()
            pipeline.load(ours, files[names[0]], "new")

        turns, their_turns = itertools.cycle(names[:2]), itertools.cycle(names[:2])
        spent = time_interleaved(
            {
                "activate, ours": lambda: pipeline.activate(ours, {next(turns): 1.0}),
                "set_adapters, diffusers": lambda: theirs.set_adapters(next(their_turns)),
                "first load of a LoRA, ours": first_load,
                "take the first off, ours": lambda: pipeline.unload(ours, "new"),
                "load a LoRA, ours": lambda: pipeline.load(ours, files[names[0]], "new"),
                "take it off, ours": lambda: pipeline.unload(ours, "new"),
                "load an HRA, ours": lambda: pipeline.load(ours, files[names[2]], "new"),
                "take off the HRA, ours": lambda: pipeline.unload(ours, "new"),
                "load_lora_weights, diffusers": lambda: theirs.load_lora_weights(
                    str(files[f"{names[0]} plain"]), adapter_name="new"
                ),
                "delete_adapters, diffusers": lambda: theirs.delete_adapters("new"),
            },
            given.rounds,
            minutes=given.minutes,
        )
    rows = [(what, median_with_range([1000 * s for s in own])) for what, own in spent.items()]
    loads = {
        way: ratios(spent[f"{way}, ours"], spent["load_lora_weights, diffusers"])
        for way in ("first load of a LoRA", "load a LoRA", "load an HRA")
    }
    bars = [Target.of("activate, ms", [1000 * s for s in spent["activate, ours"]], ACTIVATE_MS)]
    bars += [Target.of(f"{way} ÷ diffusers' load of a LoRA", own, LOAD) for way, own in loads.items()]
    report = Report(
        conditions(given, f"rank {given.rank}, UNet's attention", spent), ("what", "ms"), rows, bars, raw=spent
    )
    publish(report, given)


if __name__ == "__main__":
    main()
