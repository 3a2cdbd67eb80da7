"""hra-diffusion benchmark: compare methods on subjects with a protocol, and write tables and a report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from app.benchmarking.calibrating import measure_run
from app.commands.common import OUTPUTS, add_base, load_base, print_result
from app.commands.jobs import add_jobs, parse_jobs
from app.protocols import plan as plans
from app.protocols.plan import LPIPS, METRICS, PICTURES, RELEASED_METRICS, Budget, Plan, ProtocolName, Variants
from hra_diffusion.adapters.methods import COMPARED, REPRESENTATIVE
from hra_diffusion.adapters.registry import explain
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder
from hra_diffusion.models.sources import TOYBOX
from hra_diffusion.names import validated_name
from training.config import TrainConfig
from training.presets import PRESETS
from training.runs import calibration
from training.runs.calibration import Calibration

if TYPE_CHECKING:
    from app.protocols.cells import Benchmark, Cell
    from app.protocols.estimate import Estimate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("protocol", choices=get_args(ProtocolName), help="toybox: its ten held-out subjects; "
                        "dreambooth: the DreamBooth dataset in --data; mine: your --photos")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the DreamBooth dataset")
    parser.add_argument("--photos", type=Path, nargs="+", metavar="PATH", help="your photos; the last is held out")
    parser.add_argument("--class-noun", default="", metavar="NOUN", help="class of your subject: dog, teapot, toy")
    parser.add_argument("--subjects", nargs="+", default=[], metavar="NAME", help="default: all of the protocol")
    parser.add_argument("--prompts", type=int, metavar="N", help="prompts per subject (default: all)")
    parser.add_argument("--pictures", type=int, metavar="N", help="pictures per prompt (default: toybox 1, "
                        "dreambooth 4, mine 2)")  # fmt: skip
    parser.add_argument("--denoising-steps", type=int, default=25, metavar="N", help="of the pictures (default 25)")
    parser.add_argument("--methods", nargs="+", metavar="NAME",
                        help=f"methods to compare (default: {', '.join(COMPARED)})")  # fmt: skip
    parser.add_argument("--variants", type=Path, metavar="FILE", help="YAML file with further variants: a label each, "
                        "and below it settings such as method, learning_rate and options")  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="training seeds (default 0 1)"
    )
    parser.add_argument("--preset", choices=PRESETS, help="preset of the runs (default balanced)")
    parser.add_argument("--training-steps", type=int, metavar="N", help="steps of a run (default: the preset's)")
    parser.add_argument("--budget", choices=get_args(Budget), default="steps", help="what is equal: steps (default), "
                        "trainable parameters (by the rank), or seconds of training (by the steps)")  # fmt: skip
    parser.add_argument("--learning-rate-factors", type=float, nargs="+", default=[1.0], metavar="FACTOR",
                        help="train each variant at several learning rates: its own times each factor")  # fmt: skip
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0], metavar="S", help="also draw with "
                        "the adapters at these strengths, at the first seed")  # fmt: skip
    parser.add_argument("--checkpoints", type=int, default=0, metavar="N", help="also draw with N checkpoints of each "
                        "run, evenly spaced")  # fmt: skip
    parser.add_argument("--released-scoring", action="store_true", help="dreambooth: also score as the released code "
                        "of HRA's authors does, with dino, clip-l14 and lpips from the hub or --metrics")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="three subjects, 10 prompts, the quick preset and "
                        f"{', '.join(REPRESENTATIVE)}, unless given otherwise")  # fmt: skip
    parser.add_argument("--clip", metavar="CLIP", help="CLIP model that scores the pictures: a folder, a hub id, or "
                        "none (default for toybox: its own; else openai/clip-vit-base-patch32)")  # fmt: skip
    parser.add_argument("--metrics", nargs="+", default=[], metavar="NAME[=MODEL]", help="further models that "
                        f"compare the pictures with the photos, and LPIPS: {', '.join(METRICS)}; MODEL is a folder or "
                        "a hub id (default: the metric's own on the hub)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print what is missing, what would be trained and how "
                        "long it takes on this machine, and end")  # fmt: skip
    parser.add_argument("--minutes", type=float, help="begin no cell after so many minutes; the same command continues")
    parser.add_argument("--name", help="name of the benchmark (default: the protocol's)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures generated at once (default 8)")
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="output folder; the results are "
                        "in benchmark/NAME below")  # fmt: skip
    add_jobs(parser)
    add_base(parser, own_seed=True)


def run(arguments: argparse.Namespace) -> None:
    from app.protocols import running

    name = validated_name(arguments.name or arguments.protocol + ("-quick" if arguments.quick else ""))
    folder = arguments.output / "benchmark" / name
    variants = given_variants(arguments)
    plan = plans.as_stored(make_plan(name, arguments, variants), folder)
    if plan.budget != "steps" and plan.resolved is None:
        plan = plan.model_copy(update={"resolved": resolve_budget(arguments, plan, variants)})
    if arguments.dry_run or not arguments.quiet:
        expected = expect(plan, folder, arguments)
        if arguments.dry_run:
            print_result(arguments, *describe(plan, expected))
            return
        print(expected, file=sys.stderr)
    benchmark = prepare(arguments, plan, folder)
    plans.store(plan, make_folder(folder))
    if benchmark.jobs:
        benchmark.queue_all(benchmark.missing())
    try:
        failures = run_cells(benchmark, arguments)
    finally:
        if benchmark.jobs:
            benchmark.cancel_all(benchmark.missing())
    table, facts = running.write_results(benchmark, failures)
    report = folder / "report.html"
    print_result(arguments, f"{table}\nreport: {report}", {"folder": str(folder), "report": str(report), **facts})


def make_plan(name: str, arguments: argparse.Namespace, variants: Variants) -> Plan:
    """Return the plan that the arguments describe. Raises UserError for an invalid one."""
    quick, protocol = arguments.quick, arguments.protocol
    photos = [path.absolute() for path in arguments.photos or ()]
    found = plans.find_subjects(protocol, arguments.data, photos, arguments.class_noun)
    base = base_settings(arguments)
    variants = plans.with_rate_factors(variants, base, arguments.learning_rate_factors)
    names, sources = plans.read_metrics(arguments.metrics)
    try:
        plan = Plan(
            protocol=protocol, name=name, base=base, data=arguments.data and arguments.data.absolute(),
            photos=tuple(photos), class_noun=arguments.class_noun,
            subjects=plans.choose_subjects(found, arguments.subjects, 3 if quick else None),
            variants=variants, seeds=tuple(dict.fromkeys(arguments.seeds)),
            prompts=arguments.prompts or (10 if quick else None),
            pictures=arguments.pictures or PICTURES[protocol], denoising_steps=arguments.denoising_steps,
            budget=arguments.budget, strengths=tuple(dict.fromkeys([1.0, *arguments.strengths])), clip=arguments.clip,
            metrics=tuple(dict.fromkeys([*names, *(RELEASED_METRICS if arguments.released_scoring else ())])),
            sources=sources, checkpoints=arguments.checkpoints, released=arguments.released_scoring,
        )  # fmt: skip
    except ValidationError as error:
        raise UserError(explain(error)) from None
    plans.check(plan)
    return plan


def given_variants(arguments: argparse.Namespace) -> Variants:
    """Return the variants that the arguments name, each at the learning rate of its own. Raises UserError."""
    default = REPRESENTATIVE if arguments.quick else COMPARED
    return plans.read_variants(arguments.methods or ([] if arguments.variants else default), arguments.variants)


def base_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the training settings that all variants share."""
    given = {
        "base": arguments.base if arguments.base == TOYBOX else plans.absolute_source(arguments.base),
        "base_revision": arguments.base_revision, "base_variant": arguments.base_variant, "device": arguments.device,
        "dtype": arguments.dtype, "prediction_type": arguments.prediction_type,
        "rescale_zero_snr": arguments.rescale_zero_snr, "steps": arguments.training_steps,
        "preset": arguments.preset or ("quick" if arguments.quick else "balanced"),
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def expect(plan: Plan, folder: Path, arguments: argparse.Namespace) -> Estimate:
    """Return what the missing cells take; runs that were never measured on this machine are."""
    from app.protocols.estimate import estimate

    return estimate(folder, plan, plan.load_subjects(), lambda config: measured(config, arguments))


def describe(plan: Plan, expected: Estimate) -> tuple[str, dict[str, Any]]:
    """Return what would be trained and how long it takes, as text and as facts."""
    configs = {label: config_of(plan, label) for label in plan.variants}
    lines = [
        f"{label}: {count} × {configs[label].steps} steps, learning rate {configs[label].learning_rate:g}, "
        + ", ".join(f"{name} {value}" for name, value in configs[label].options.items())
        for label, count in expected.runs.items()
    ]
    facts = {
        "cells": len(expected.seconds), "runs": expected.runs, "pictures": expected.pictures,
        "seconds": expected.total, "unknown": expected.unknown,
        "variants": {label: config.model_dump(mode="json", exclude={"photos"}) for label, config in configs.items()},
    }  # fmt: skip
    return "\n".join([str(expected), *lines]), facts


def prepare(arguments: argparse.Namespace, plan: Plan, folder: Path) -> Benchmark:
    """Return the benchmark with the models that score it loaded."""
    from app.protocols.cells import Benchmark
    from app.protocols.released import ReleasedScorer
    from app.protocols.scoring import Scorer
    from app.protocols.subjects import TOYBOX_FOLDER
    from hra_diffusion.evaluation import metrics
    from hra_diffusion.evaluation.clip import find_clip
    from hra_diffusion.evaluation.judge import load_judge
    from hra_diffusion.evaluation.lpips import Lpips
    from hra_diffusion.generation.requests import Settings, complete_settings

    jobs = parse_jobs(arguments)
    size = complete_settings(load_base(arguments), Settings()).width
    judge = None
    if plan.protocol == "toybox" and arguments.base == TOYBOX:
        judge = load_judge(TOYBOX_FOLDER / "judge.safetensors", TOYBOX_FOLDER / "references.safetensors")
    clip, missing = find_clip(arguments.base, arguments.clip, arguments.device or "cpu")
    if clip is None and judge is None:
        raise UserError(missing or "there is nothing to score with; leave out --clip none")
    if missing and not arguments.quiet:
        print(f"note: {missing}; the benchmark has no CLIP scores", file=sys.stderr)
    subjects, device = plan.load_subjects(), arguments.device or "cpu"
    embedders = {name: metrics.find(name, device, plan.sources.get(name)) for name in plan.metrics if name != LPIPS}
    lpips = Lpips(plan.sources.get(LPIPS), device=device) if LPIPS in plan.metrics else None
    released = ReleasedScorer.load(lpips, plan.sources, device) if plan.released and lpips else None
    scorer = Scorer(subjects, size, clip, judge, embedders, lpips, released)
    return Benchmark(
        folder, arguments.output, plan, subjects, lambda: load_base(arguments), scorer, arguments.batch_size,
        jobs=jobs,
    )  # fmt: skip


def resolve_budget(arguments: argparse.Namespace, plan: Plan, variants: Variants) -> Variants:
    """Return the settings of the variants with ranks or steps of an equal budget. Raises UserError."""
    if plan.budget == "parameters":
        variants = plans.equal_parameters(variants, plan.base, load_base(arguments))
        return plans.with_rate_factors(variants, plan.base, arguments.learning_rate_factors)  # rates depend on ranks
    found = {label: measure(config_of(plan, label), arguments) for label in plan.variants}
    return plans.equal_seconds(plan.variants, plan.base, found)


def config_of(plan: Plan, variant: str) -> TrainConfig:
    """Return the configuration of a variant's first run."""
    subjects = plan.load_subjects()
    return plan.config(subjects[plan.subjects[0]], variant, plan.seeds[0])


def measured(config: TrainConfig, arguments: argparse.Namespace) -> Calibration:
    """Return the stored measurement of a run, or measure it."""
    return calibration.load(arguments.output, config) or measure_run(config, arguments.output, arguments.quiet)


def measure(config: TrainConfig, arguments: argparse.Namespace) -> Calibration:
    """The same. Raises UserError if the measurement failed."""
    found = measured(config, arguments)
    if found.error:
        raise UserError(f"{config.method}: {found.error}")
    return found


def run_cells(benchmark: Benchmark, arguments: argparse.Namespace) -> dict[Cell, str]:
    """Run the missing cells within ``--minutes``; return those that failed or were not begun with the reason."""
    from app.protocols import running

    start = time.monotonic()
    say: Callable[[str], None] = (lambda text: None) if arguments.quiet else lambda text: print(text, file=sys.stderr)

    def begin(step: running.Step) -> str:
        if arguments.minutes is not None and time.monotonic() - start > 60 * arguments.minutes:
            return "not begun: out of time"
        say(str(step))
        return ""

    return running.run_cells(benchmark, benchmark.run, begin, lambda text: say(f"  {text}"))
