"""What the benchmarks share: their options, the bases they measure on, contestants, and how a result is kept."""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import BOFTConfig, HRAConfig, LoraConfig, OFTConfig, inject_adapter_in_model
from torch import nn

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment, registry
from hra_diffusion.adapters.quantization import quantise
from hra_diffusion.allocator import retain_freed_memory
from hra_diffusion.files import write_text
from hra_diffusion.models import loading, sources
from hra_diffusion.models.families.architectures import SD1, SDXL, Architecture
from training import config as configs
from training.data.photos import ingest
from training.memory import measure
from training.runs.events import Listener
from training.runs.run_folder import Run
from training.session import PhaseTimer, Session, make_accelerator, set_up

RESULTS = Path(__file__).parent / "results"
SUBJECT = sources.ASSETS / "subjects" / "octopus"
ARCHITECTURES = {"sd1": SD1, "sdxl": SDXL}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
PEFT = {
    "PEFT LoRA": lambda rank: LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS),
    "PEFT HRA": lambda rank: HRAConfig(r=rank, target_modules=TARGETS),
    "PEFT OFT": lambda rank: OFTConfig(r=0, oft_block_size=32, target_modules=TARGETS),
    "PEFT BOFT": lambda rank: BOFTConfig(boft_block_size=4, target_modules=TARGETS),
}
"""PEFT's methods by name, from a rank; OFT and BOFT have blocks instead, here of their own defaults' size."""


@dataclass(frozen=True)
class Bar:
    """A figure that a claim stands or falls by. ``rounds``: what it is the median of; none if it is measured once."""

    what: str
    value: float
    limit: float
    at_least: bool = False
    rounds: Sequence[float] = ()

    @classmethod
    def of(cls, what: str, rounds: Sequence[float], limit: float, at_least: bool = False) -> "Bar":
        """The median of the rounds against a limit."""
        return cls(what, statistics.median(rounds), limit, at_least, rounds)

    @property
    def verdict(self) -> str:
        """Whether the figure keeps to its limit; too few rounds decide nothing."""
        if 0 < len(self.rounds) < measure.ENOUGH:
            return "undecided"
        return "met" if (self.value >= self.limit if self.at_least else self.value <= self.limit) else "missed"

    @property
    def figure(self) -> str:
        """The figure, and the least and the most of its rounds."""
        return measure.spread(self.rounds) if len(self.rounds) > 1 else f"{self.value:.3g}"

    def __str__(self) -> str:
        return f"{self.what} {self.figure}: {self.verdict}, {'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass(frozen=True)
class Report:
    """What a benchmark found: a table, the figures its claim stands by, and what a reader should know."""

    conditions: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    bars: Sequence[Bar] = ()
    notes: Sequence[str] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)


def arguments(doc: str | None, cpu: Mapping[str, Any], cuda: Mapping[str, Any], **more: Any) -> argparse.Namespace:
    """A benchmark's options; what is not given is what ``cpu`` or ``cuda`` say for the device."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result as JSON")
    chosen = cuda if "cuda" in sys.argv or "--device=cuda" in sys.argv else cpu
    for name, value in {"base": "toybox", "dtype": "float32", "rounds": 5, "minutes": 3.0, **chosen, **more}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}")
    return parser.parse_args()


def sd1_arguments(doc: str | None, cuda_dtype: str = "bfloat16", **more: Any) -> argparse.Namespace:
    """The options of a benchmark of steps of Stable Diffusion 1.5's UNet, on latents that the device can take."""
    cuda = {"side": 64, "dtype": cuda_dtype, "rounds": 20}
    return arguments(doc, {"side": 32, "rounds": 3}, cuda, **({"base": "sd1", "rank": 8} | more))


def publish(report: Report, given: argparse.Namespace) -> None:
    """Print the table with the machine on top and write it as JSON, named after the benchmark and the device."""
    name, here = Path(sys.argv[0]).stem, measure.machine()
    command = f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip()
    made_by = {"commit": made} if (made := commit()) else {}
    facts = {"command": command, **made_by, "machine": here, **dataclasses.asdict(report)}
    print(f"{command}\n{measure.in_words(here)}\n{report.conditions}\n")
    print(measure.markdown(report.columns, report.rows))
    print("\n".join(["", *map(str, report.bars), *report.notes]))
    place = given.output / f"{name}{'-cuda' * (given.device == 'cuda')}.json"
    write_text(place, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def publish_ratios(
    given: argparse.Namespace,
    spent: Mapping[str, Sequence[float]],
    to: str,
    columns: Sequence[str],
    limits: Mapping[str, float],
    form: str = ".2f",
) -> None:
    """Publish the contestants' seconds as parts of those of one of them, ``to``, which are to keep to ``limits``."""
    against = {name: measure.ratios(own, spent[to]) for name, own in spent.items()}
    rows = [(name, measure.spread(own), measure.spread(against[name], form)) for name, own in spent.items()]
    bars = [Bar.of(f"{name} {columns[-1]}", own, limits[name]) for name, own in against.items() if name != to]
    publish(Report(conditions(given, shapes(given), spent), columns, rows, bars, raw=spent), given)


def shapes(given: argparse.Namespace) -> str:
    """What the UNet was given, for the sentence above a table."""
    batch = f"batch {given.batch_size}" if "batch_size" in given else "one denoising step with guidance (batch 2)"
    return f"rank {given.rank}, {given.side}×{given.side} latents, {batch}"


def commit(folder: Path = Path(__file__).parent.parent) -> str:
    """The checkout's commit, "-dirty" where its code is not that commit's (results may be); "" outside a checkout."""
    git = ["git", "-C", str(folder)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return ""
    if found.returncode:
        return ""
    code = [":/", ":(top,exclude)benchmarks/results", ":(top,exclude)README.md"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code]).returncode
    return found.stdout.strip() + ("-dirty" if changed else "")


def conditions(given: argparse.Namespace, what: str, spent: Mapping[Any, Sequence[float]]) -> str:
    """The sentence above a table."""
    base = {"toybox": "toybox", "sd1": "Stable Diffusion 1.5 (random weights)", "sdxl": "SDXL (random weights)"}
    rounds = len(next(iter(spent.values())))
    return f"{base[given.base]}, {what}, {given.dtype}, {given.device}; {rounds} interleaved rounds"


def load_unet(base: str, device: str, dtype: str) -> Any:
    """The UNet of toybox, or of a released architecture with random weights."""
    if base == sources.TOYBOX:
        return loading.load_base(base, device, dtype).unet
    return _random(ARCHITECTURES[base], "build_unet", device, dtype)


def load_pipe(base: str, device: str, dtype: str) -> StableDiffusionPipeline:
    """The whole pipeline: toybox, or Stable Diffusion 1.5 with random weights and toybox's vocabulary."""
    pipe = loading.load_base(sources.TOYBOX, device, dtype)
    if base == sources.TOYBOX:
        return pipe
    parts = {name: _random(SD1, f"build_{name}", device, dtype) for name in ("unet", "vae", "encoders")}
    pipe.tokenizer.model_max_length = 77
    made = StableDiffusionPipeline(
        parts["vae"], parts["encoders"][0], pipe.tokenizer, parts["unet"], DDIMScheduler(**SD1.scheduler[1]),
        None, None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    made.base_name = SD1.name
    return made


def _random(architecture: Architecture, build: str, device: str, dtype: str) -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(loading.DTYPES[dtype])
    try:
        made = getattr(architecture, build)()
    finally:
        torch.set_default_dtype(torch.float32)
    return [part.to(device).eval() for part in made] if isinstance(made, list) else made.to(device).eval()


def adapted(unet: nn.Module, method: str, rank: int, **options: Any) -> tuple[Any, list[nn.Parameter]]:
    """A twin of the UNet with an adapter on its attention, ours ("hra") or PEFT's ("PEFT HRA"); and its parameters."""
    model = measure.twin(unet)
    if method in registry.method_names():
        attachment.attach(model, method, {"rank": rank} | options)
        return model, list(attachment.adapter_parameters(model, "default").values())
    model.requires_grad_(False)
    with warnings.catch_warnings(action="ignore"):  # BOFT's fast kernel wants a compiler
        inject_adapter_in_model(PEFT[method](rank), model, "default")
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def step(unet: Any, method: str, rank: int, batch_size: int, side: int, **options: Any) -> Callable[[], None]:
    """One optimiser step of a method, its regulariser included, on its own twin of the UNet."""
    model, parameters = adapted(unet, method, rank, **options)
    if method not in registry.method_names():
        return measure.training_step(model, parameters, batch_size, side)
    return measure.training_step(model, parameters, batch_size, side, partial(attachment.penalty, model, "default"))


def steps(unet: Any, methods: Sequence[str], rank: int, batch_size: int, side: int) -> dict[str, Callable[[], None]]:
    """A contestant a method."""
    return {method: step(unet, method, rank, batch_size, side) for method in methods}


def memory_of_a_step(
    base: str, device: str, dtype: str, method: str, rank: int, batch_size: int, side: int,
    checkpointing: bool = False, weights: str = "full",
) -> tuple[float, float]:  # fmt: skip
    """Peak of a process that trains for two steps, in GiB, and how much of it is beyond what the loaded base takes."""
    unet = load_unet(base, device, dtype)
    if weights != "full":
        quantise(unet, weights)
    held = measure.forget_peak(device)
    model, parameters = adapted(unet, method, rank)
    if checkpointing:
        model.train().enable_gradient_checkpointing()
    step = measure.training_step(model, parameters, batch_size, side)
    for _ in range(2 if device == "cuda" else 1):  # the optimiser's state is there after the first
        step()
    peak = measure.peak_memory(device)
    return peak / 2**30, (peak - held) / 2**30


def train_config(given: argparse.Namespace, **changes: Any) -> configs.TrainConfig:
    """A run on the sample subject without what a plain loop lacks: weights, a choice of noise, class images, samples.

    It adapts attention alone, as those loops do, whatever the base's presets say.
    """
    plain = {"min_snr_gamma": 0, "noise_power": 1, "prior_weight": 0, "targets": "attention"}
    steady, silent = {"schedule": "constant", "warmup_steps": 0}, {"sample_every": 0, "sample_prompts": []}
    named = {"name": "bench", "photos": [SUBJECT], "class_noun": "toy", "device": given.device, "dtype": given.dtype}
    return configs.parse(plain | steady | silent | named | changes)


def start_session(
    pipe: StableDiffusionPipeline, config: configs.TrainConfig, folder: Path, listeners: Sequence[Listener] = ()
) -> Session:
    """The trainer, set up on a pipeline and about to take its first step."""
    retain_freed_memory()  # as a run does
    accelerator = make_accelerator(config)
    album = ingest(config.photos, config.resolution or 128, config.crop, config.boxes)
    return set_up(config, Run(folder / config.name), accelerator, pipe, album, PhaseTimer(True, list(listeners)))


def put_on(pipe: StableDiffusionPipeline, methods: Sequence[str], rank: int) -> list[str]:
    """Put adapters that do something on the pipeline's UNet; their names."""
    for number, method in enumerate(methods):
        attachment.attach(pipe.unet, method, {"rank": rank}, name=f"{method} {number}", seed=number)
        for parameter in attachment.adapter_parameters(pipe.unet, f"{method} {number}").values():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.data += 0.01 * noise.to(parameter)
    return pipeline.loaded(pipe)
