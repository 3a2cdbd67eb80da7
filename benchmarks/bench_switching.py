"""Activating another loaded adapter and loading one from disk, against diffusers' methods.

    python -m benchmarks.bench_switching [--device cuda] [--base toybox] [--rounds 7]

The first load also fingerprints the base model, to check that the adapter is compatible, and caches the result: it has
a row of its own.
"""

import itertools
import tempfile
from pathlib import Path

from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from app.benchmarking.workloads import weight_sharing_copy
from benchmarks.models import attach_random, load_pipe
from benchmarks.options import parse_options
from benchmarks.report import Report, Target, describe_conditions, publish
from hra_diffusion import interop, pipeline
from hra_diffusion.adapters import fingerprint

ACTIVATE_LIMIT_MS, LOAD_LIMIT = 10, 0.5


def main() -> None:
    defaults = {"base": "sd1", "rounds": 7}, {"base": "sd1", "dtype": "float16", "rounds": 20}
    args = parse_options(__doc__, *defaults, rank=8)
    ours = load_pipe(args.base, args.device, args.dtype)
    theirs = type(ours)(**{**ours.components, "unet": weight_sharing_copy(ours.unet)}, requires_safety_checker=False)
    with tempfile.TemporaryDirectory() as folder:
        names, files = attach_random(ours, ["lora", "lora", "hra"], args.rank), {}
        for name in names:
            files[name] = Path(folder) / f"{name}.safetensors"
            pipeline.save(ours, files[name], name)
            exported = interop.export(ours, name, "diffusers", Path(folder) / f"{name}-diffusers.safetensors").path
            theirs.load_lora_weights(str(exported), adapter_name=name)
            files[f"{name}, diffusers"] = exported

        def first_load() -> None:
            fingerprint._probes.clear()
            pipeline.load(ours, files[names[0]], "new")

        next_name, next_of_theirs = itertools.cycle(names[:2]), itertools.cycle(names[:2])
        variants = {
            "activate": lambda: pipeline.activate(ours, {next(next_name): 1.0}),
            "set_adapters of diffusers": lambda: theirs.set_adapters(next(next_of_theirs)),
            "first load of a LoRA": first_load,
            "unload it": lambda: pipeline.unload(ours, "new"),
            "load a LoRA": lambda: pipeline.load(ours, files[names[0]], "new"),
            "unload the LoRA": lambda: pipeline.unload(ours, "new"),
            "load an HRA": lambda: pipeline.load(ours, files[names[2]], "new"),
            "unload the HRA": lambda: pipeline.unload(ours, "new"),
            "load_lora_weights of diffusers": lambda: theirs.load_lora_weights(
                str(files[f"{names[0]}, diffusers"]), adapter_name="new"
            ),
            "delete_adapters of diffusers": lambda: theirs.delete_adapters("new"),
        }
        seconds = time_interleaved(variants, args.rounds, minutes=args.minutes)
    milliseconds = {name: [1000 * s for s in rounds] for name, rounds in seconds.items()}
    rows = [(name, median_with_range(rounds)) for name, rounds in milliseconds.items()]
    targets = [Target.of("activate, ms", milliseconds["activate"], ACTIVATE_LIMIT_MS)]
    for name in ("first load of a LoRA", "load a LoRA", "load an HRA"):
        relative = ratios(seconds[name], seconds["load_lora_weights of diffusers"])
        targets.append(Target.of(f"{name} ÷ diffusers' load of a LoRA", relative, LOAD_LIMIT))
    conditions = describe_conditions(args, f"rank {args.rank}, UNet's attention", seconds)
    publish(Report(conditions, ("operation", "ms"), rows, targets, raw=seconds), args)


if __name__ == "__main__":
    main()
