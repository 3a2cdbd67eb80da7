"""Shared by the benchmarks: command-line options, base models, variants, and writing a result."""

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

from app.benchmarking.machine import describe_machine, machine_facts, markdown_table
from app.benchmarking.timing import MIN_ROUNDS, median_with_range, ratios
from app.benchmarking.workloads import make_training_step, weight_sharing_copy
from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment, registry
from hra_diffusion.adapters.quantization import quantise
from hra_diffusion.allocator import retain_freed_memory
from hra_diffusion.files import write_text
from hra_diffusion.models import loading, sources
from hra_diffusion.models.families.architectures import SD1, SDXL, Architecture
from training import config as configs
from training.data.dataset import load_dataset
from training.memory.peak import peak_memory, reset_peak_memory
from training.runs.events import Listener
from training.runs.run_folder import Run
from training.session.devices import make_accelerator
from training.session.phase_timer import PhaseTimer
from training.session.setup import set_up
from training.session.state import Session

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
"""PEFT configurations by name, each from a rank; OFT and BOFT use block sizes instead, here PEFT's defaults."""


@dataclass(frozen=True)
class Target:
    """A measured figure and its limit. ``rounds``: the values that it is the median of; empty if measured once."""

    what: str
    value: float
    limit: float
    at_least: bool = False
    rounds: Sequence[float] = ()

    @classmethod
    def of(cls, what: str, rounds: Sequence[float], limit: float, at_least: bool = False) -> "Target":
        """Compare the median of the rounds with a limit."""
        return cls(what, statistics.median(rounds), limit, at_least, rounds)

    @property
    def verdict(self) -> str:
        """ "met", "missed", or "undecided" if there are too few rounds."""
        if 0 < len(self.rounds) < MIN_ROUNDS:
            return "undecided"
        return "met" if (self.value >= self.limit if self.at_least else self.value <= self.limit) else "missed"

    @property
    def figure(self) -> str:
        """The value, with the minimum and maximum of its rounds."""
        return median_with_range(self.rounds) if len(self.rounds) > 1 else f"{self.value:.3g}"

    @property
    def mark(self) -> str:
        """The verdict as a sign: ✓, ✗ or ?."""
        return {"met": "✓", "missed": "✗", "undecided": "?"}[self.verdict]

    @property
    def condition(self) -> str:
        """The limit with its sign: "≤ 1.1"."""
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"

    def __str__(self) -> str:
        return f"{self.what} {self.figure}: {self.verdict}, {self.condition}"


@dataclass(frozen=True)
class Report:
    """Result of a benchmark: a table, figures with targets, notes. Field names are the keys of the JSON file."""

    conditions: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    bars: Sequence[Target] = ()
    notes: Sequence[str] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)


def arguments(doc: str | None, cpu: Mapping[str, Any], cuda: Mapping[str, Any], **more: Any) -> argparse.Namespace:
    """Parse a benchmark's options; ``cpu`` and ``cuda`` hold the defaults for each device, ``more`` those for both."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result as JSON")
    chosen = cuda if "cuda" in sys.argv or "--device=cuda" in sys.argv else cpu
    for name, value in {"base": "toybox", "dtype": "float32", "rounds": 5, "minutes": 3.0, **chosen, **more}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}")
    return parser.parse_args()


def sd1_arguments(doc: str | None, cuda_dtype: str = "bfloat16", **more: Any) -> argparse.Namespace:
    """Parse the options of a benchmark of steps of Stable Diffusion 1.5's UNet, with latents sized for the device."""
    cuda = {"side": 64, "dtype": cuda_dtype, "rounds": 20}
    return arguments(doc, {"side": 32, "rounds": 3}, cuda, **({"base": "sd1", "rank": 8} | more))


def publish(report: Report, given: argparse.Namespace) -> None:
    """Print a report with the machine it was measured on, and write it as JSON named after benchmark and device."""
    name, here = Path(sys.argv[0]).stem, machine_facts()
    command = f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip()
    made_by = {"commit": made} if (made := commit()) else {}
    facts = {"command": command, **made_by, "machine": here, **dataclasses.asdict(report)}
    print(f"{command}\n{describe_machine(here)}\n{report.conditions}\n")
    print(markdown_table(report.columns, report.rows))
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
    """Publish the seconds of each variant divided by those of the variant ``to``, with ``limits`` as targets."""
    against = {name: ratios(own, spent[to]) for name, own in spent.items()}
    rows = [(name, median_with_range(own), median_with_range(against[name], form)) for name, own in spent.items()]
    bars = [Target.of(f"{name} {columns[-1]}", own, limits[name]) for name, own in against.items() if name != to]
    publish(Report(conditions(given, shapes(given), spent), columns, rows, bars, raw=spent), given)


def shapes(given: argparse.Namespace) -> str:
    """Shapes of the UNet's inputs, for the sentence above a table."""
    batch = f"batch {given.batch_size}" if "batch_size" in given else "one denoising step with guidance (batch 2)"
    return f"rank {given.rank}, {given.side}×{given.side} latents, {batch}"


def commit(folder: Path = Path(__file__).parent.parent) -> str:
    """Return the short commit hash, with "-dirty" if code other than results changed; "" outside a Git checkout."""
    git = ["git", "-C", str(folder)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return ""
    if found.returncode:
        return ""
    code = [":/", ":(top,exclude)benchmarks/results", ":(top,exclude)docs/benchmarks.md"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code]).returncode
    return found.stdout.strip() + ("-dirty" if changed else "")


def conditions(given: argparse.Namespace, what: str, spent: Mapping[Any, Sequence[float]]) -> str:
    """Describe base model, inputs, dtype, device and rounds in a sentence."""
    base = {"toybox": "toybox", "sd1": "Stable Diffusion 1.5 (random weights)", "sdxl": "SDXL (random weights)"}
    rounds = len(next(iter(spent.values())))
    return f"{base[given.base]}, {what}, {given.dtype}, {given.device}; {rounds} interleaved rounds"


def load_unet(base: str, device: str, dtype: str) -> Any:
    """Load toybox's UNet, or create one of a released architecture with random weights."""
    if base == sources.TOYBOX:
        return loading.load_base(base, device, dtype).unet
    return _random(ARCHITECTURES[base], "build_unet", device, dtype)


def load_pipe(base: str, device: str, dtype: str) -> StableDiffusionPipeline:
    """Load toybox, or create Stable Diffusion 1.5 with random weights and toybox's tokenizer."""
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
    """Return a weight-sharing copy of the UNet with an adapter on its attention, and the adapter's parameters.

    ``method``: one of ours ("hra") or of PEFT's ("PEFT HRA").
    """
    model = weight_sharing_copy(unet)
    if method in registry.method_names():
        attachment.attach(model, method, {"rank": rank} | options)
        return model, list(attachment.adapter_parameters(model, "default").values())
    model.requires_grad_(False)
    with warnings.catch_warnings(action="ignore"):  # BOFT's fast kernel wants a compiler
        inject_adapter_in_model(PEFT[method](rank), model, "default")
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def step(unet: Any, method: str, rank: int, batch_size: int, side: int, **options: Any) -> Callable[[], None]:
    """Return an optimiser step of a method, its penalty included, on a copy of the UNet of its own."""
    model, parameters = adapted(unet, method, rank, **options)
    if method not in registry.method_names():
        return make_training_step(model, parameters, batch_size, side)
    return make_training_step(model, parameters, batch_size, side, partial(attachment.penalty, model, "default"))


def steps(unet: Any, methods: Sequence[str], rank: int, batch_size: int, side: int) -> dict[str, Callable[[], None]]:
    """Return an optimiser step of each method."""
    return {method: step(unet, method, rank, batch_size, side) for method in methods}


def step_memory(
    base: str, device: str, dtype: str, method: str, rank: int, batch_size: int, side: int,
    checkpointing: bool = False, weights: str = "full",
) -> tuple[float, float]:  # fmt: skip
    """Peak memory of a process that trains two steps, in GiB: in total, and beyond the loaded base model."""
    unet = load_unet(base, device, dtype)
    if weights != "full":
        quantise(unet, weights)
    before = reset_peak_memory(device)
    model, parameters = adapted(unet, method, rank)
    if checkpointing:
        model.train().enable_gradient_checkpointing()
    step = make_training_step(model, parameters, batch_size, side)
    for _ in range(2 if device == "cuda" else 1):  # the optimiser's state is there after the first
        step()
    peak = peak_memory(device)
    return peak / 2**30, (peak - before) / 2**30


def train_config(given: argparse.Namespace, **changes: Any) -> configs.TrainConfig:
    """Configuration of a run on the sample subject, reduced to what a plain DreamBooth loop does.

    No min-SNR weighting, timestep bias, prior preservation or sample images; only attention is adapted.
    """
    plain = {"min_snr_gamma": 0, "timestep_bias": 1, "prior_loss_weight": 0, "targets": "attention"}
    steady, silent = {"lr_scheduler": "constant", "lr_warmup_steps": 0}, {"sample_every": 0, "sample_prompts": []}
    named = {"name": "bench", "photos": [SUBJECT], "class_noun": "toy", "device": given.device, "dtype": given.dtype}
    return configs.parse(plain | steady | silent | named | changes)


def start_session(
    pipe: StableDiffusionPipeline, config: configs.TrainConfig, folder: Path, listeners: Sequence[Listener] = ()
) -> Session:
    """Set up the trainer on a pipeline, ready for its first step."""
    retain_freed_memory()  # as a run does
    accelerator = make_accelerator(config)
    dataset = load_dataset(config.photos, config.resolution or 128, config.crop, config.boxes)
    return set_up(config, Run(folder / config.name), accelerator, pipe, dataset, PhaseTimer(True, list(listeners)))


def attach_random(pipe: StableDiffusionPipeline, methods: Sequence[str], rank: int) -> list[str]:
    """Attach adapters with random weights to the pipeline's UNet and return their names."""
    for number, method in enumerate(methods):
        attachment.attach(pipe.unet, method, {"rank": rank}, name=f"{method} {number}", seed=number)
        for parameter in attachment.adapter_parameters(pipe.unet, f"{method} {number}").values():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.data += 0.01 * noise.to(parameter)
    return pipeline.loaded(pipe)
