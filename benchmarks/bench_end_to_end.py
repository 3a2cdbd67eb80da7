"""End to end: photos to a saved adapter, against a plain diffusers + PEFT DreamBooth loop that caches nothing.

    python -m benchmarks.bench_end_to_end [--device cuda] [--steps 100] [--rounds 3] [--large-rounds 3]

On toybox both are run whole, from loading the base on, after a few steps of each that do not count, and take turns in
being first. They start from the same adapter and draw the same noise, so that their losses must agree. At Stable
Diffusion 1.5's size, with random weights, their steps are interleaved, and what a run of the Quick preset takes is
computed from a step and from what ours does once before the first.
"""

import argparse
import copy
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor, nn

from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from app.benchmarking.workloads import weight_sharing_copy
from benchmarks.common import PEFT, SUBJECT, Report, Target, arguments, load_pipe, publish, start_session, train_config
from hra_diffusion.adapters import attachment
from training import objective
from training.config import TrainConfig
from training.loop import train
from training.presets import defaults
from training.runs.events import Event, Step
from training.step import train_step

FASTER, SAME_LOSS, WARM_UP = 1.5, 0.01, 3
METHODS = {"lora": "PEFT LoRA", "hra": "PEFT HRA"}
PARTS = {"lora": {"lora_A.default.weight": "down", "lora_B.default.weight": "up"}, "hra": {"hra_u.default": "right.u"}}
"""PEFT's parameters of a layer, and ours."""

Found = tuple[list[tuple[object, ...]], list[Target], dict[str, Any]]


def main() -> None:
    given = arguments(__doc__, {"resolution": 256, "rounds": 3}, {"resolution": 512}, steps=100, rank=8, large_rounds=3)
    parts = [whole_runs(given, method) for method in METHODS]
    if given.large_rounds:
        pipe = load_pipe("sd1", given.device, given.dtype)
        parts += [large_steps(given, method, pipe) for method in METHODS]
    rows, bars = [row for part in parts for row in part[0]], [bar for part in parts for bar in part[1]]
    columns = ("run", "rounds", "ours, s", "plain diffusers + PEFT, s", "plain ÷ ours", "losses apart, relative")
    said = (
        f"rank {given.rank}, {given.dtype}, {given.device}; toybox 128 px, whole runs in turn; "
        f"SD 1.5 (random weights) {given.resolution} px, batch 1, interleaved steps"
    )
    raw = {name: values for part in parts for name, values in part[2].items()}
    publish(Report(said, columns, rows, bars, raw=raw), given)


def whole_runs(given: argparse.Namespace, method: str) -> Found:
    """On toybox: both from the photos to the file, in turn, and how far their losses are apart."""
    config = train_config(given, method=method, options={"rank": given.rank}, resolution=128, batch_size=8,
                          steps=given.steps, checkpoint_every=given.steps)  # fmt: skip
    losses: dict[str, list[float]] = {}

    def ours(config: TrainConfig = config) -> None:
        losses["ours"] = our_losses(config)

    def plain(config: TrainConfig = config) -> None:
        with tempfile.TemporaryDirectory() as folder:
            losses["plain"] = list(plain_steps(fresh(given), config, Path(folder) / "plain"))

    few = config.model_copy(update={"steps": WARM_UP})
    ours(few)
    plain(few)
    both = {"ours": ours, "plain": plain}
    spent = time_interleaved(both, given.rounds, warm_up=False, minutes=given.minutes, alternate=True)
    faster = ratios(spent["plain"], spent["ours"])
    apart = max(abs(a - b) / b for a, b in zip(losses["ours"], losses["plain"], strict=True))
    name = f"toybox, {method}, {given.steps} steps of 8"
    rows = [
        (
            name,
            len(faster),
            median_with_range(spent["ours"]),
            median_with_range(spent["plain"]),
            median_with_range(faster, ".2f"),
            f"{apart:.1e}",
        )
    ]
    bars = [
        Target.of(f"toybox, {METHODS[method]} plain ÷ ours", faster, FASTER, at_least=True),
        Target(f"toybox, {method}, losses apart", apart, SAME_LOSS),
    ]
    return rows, bars, {name: spent | {f"losses, {who}": values for who, values in losses.items()}}


def large_steps(given: argparse.Namespace, method: str, pipe: Any) -> Found:
    """At Stable Diffusion 1.5's size: a step of each in turn, and a whole run computed from it."""
    config = train_config(given, method=method, options={"rank": given.rank}, resolution=given.resolution, base="sd1",
                          batch_size=1, steps=1000)  # fmt: skip
    # ours parks its VAE and text encoder off the device, where theirs goes on using them
    idle = {name: copy.deepcopy(getattr(pipe, name)) for name in ("vae", "text_encoder")}
    ours, theirs = (
        type(pipe)(**pipe.components | {"unet": weight_sharing_copy(pipe.unet)} | own) for own in (idle, {})
    )
    with tempfile.TemporaryDirectory() as folder:
        session = start_session(ours, config, Path(folder))
        loop = plain_steps(theirs, config, Path(folder) / "plain")
        steps = {"ours": lambda: train_step(session, config.learning_rate), "plain": lambda: next(loop)}
        spent = time_interleaved(steps, given.large_rounds, minutes=given.minutes)
    caching, count = session.timer.phases["cache"], defaults("sd1", method, "quick")["steps"]
    whole = {"ours": caching + count * statistics.median(spent["ours"])}
    whole["plain"] = count * statistics.median(spent["plain"])
    faster = [count * plain / (caching + count * ours) for ours, plain in zip(*spent.values(), strict=True)]
    name = f"SD 1.5, {method}, "
    a_step = ratios(spent["plain"], spent["ours"])
    rows = [
        (name + "a step", len(a_step), *map(median_with_range, spent.values()), median_with_range(a_step, ".2f"), ""),
        (f"{name}{count} steps, computed; ours caches for {caching:.0f} s first", "", f"{whole['ours']:.0f}",
         f"{whole['plain']:.0f}", median_with_range(faster, ".2f"), ""),
    ]  # fmt: skip
    bars = [Target.of(f"SD 1.5, {METHODS[method]} plain ÷ ours, computed", faster, FASTER, at_least=True)]
    return rows, bars, {name + "a step": spent}


def our_losses(config: TrainConfig) -> list[float]:
    """A run of ours, from loading the base to the saved adapter; the loss of each step."""
    losses: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, Step):
            losses.append(event.loss)

    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder), [listen])
    return losses


def fresh(given: argparse.Namespace) -> Any:
    """Toybox, loaded anew."""
    return load_pipe("toybox", given.device, given.dtype)


def plain_steps(pipe: Any, config: TrainConfig, path: Path) -> Iterator[float]:
    """The loop of diffusers' DreamBooth script: every step reads photos, encodes them and their caption, and learns.

    Yields each step's loss and saves the adapter after the last. Its random numbers are those our trainer draws.
    """
    parameters = add_peft(pipe.unet, config)
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    for step in range(config.steps):
        latents, text = encode_batch(pipe, config, step)
        generator, scheduler = objective.seeded_generator(config.seed, "noise", step), pipe.scheduler
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        total = scheduler.config.num_train_timesteps
        timesteps = objective.sample_timesteps(len(latents), total, config.timestep_bias, generator).to(latents.device)
        velocity = scheduler.config.prediction_type == "v_prediction"
        wanted = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        predicted = pipe.unet(scheduler.add_noise(latents, noise, timesteps), timesteps, text).sample
        loss = F.mse_loss(predicted.float(), wanted.float())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()
    save_file(dict(parameters), path)


def add_peft(unet: Any, config: TrainConfig) -> dict[str, nn.Parameter]:
    """PEFT's adapter on the UNet, with the values that ours starts from; its parameters."""
    ours = weight_sharing_copy(unet)
    attachment.attach(ours, config.method, config.options, targets=config.targets, seed=config.seed)
    unet.requires_grad_(False)
    unet.add_adapter(PEFT[METHODS[config.method]](config.options["rank"]))
    for path, layer in attachment.adapter_layers(ours, "default").items():
        for name, own in PARTS[config.method].items():
            unet.get_submodule(path).get_parameter(name).data.copy_(layer.get_parameter(own))
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def encode_batch(pipe: Any, config: TrainConfig, step: int) -> tuple[Tensor, Tensor]:
    """A batch's latents and text, from the photos' files and the caption."""
    photos, size = sorted(SUBJECT.glob("*.png")), config.batch_size
    picks = objective.batch_indices(len(photos), size, step, config.seed)
    generator = objective.seeded_generator(config.seed, "photos", "latents", step)
    flips = torch.randint(2, (size,), generator=generator).tolist()
    pixels = torch.stack([read(photos[i], config.resolution, flip) for i, flip in zip(picks, flips, strict=True)])
    posterior = pipe.vae.encode(pixels.to(pipe.device, pipe.vae.dtype)).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
    latents = (posterior.mean + posterior.std * noise) * pipe.vae.config.scaling_factor
    captions = [config.caption.replace("{subject}", config.subject)] * size
    tokens = pipe.tokenizer(captions, padding="max_length", max_length=pipe.tokenizer.model_max_length,
                            truncation=True, return_tensors="pt")  # fmt: skip
    return latents, pipe.text_encoder(tokens.input_ids.to(pipe.device))[0]


def read(photo: Path, resolution: int | None, flip: int) -> Tensor:
    """A photo as the script's transforms give it: cut to a square, mirrored or not, −1 to 1."""
    with Image.open(photo) as image:
        square = ImageOps.fit(image.convert("RGB"), (resolution or image.width,) * 2, Image.Resampling.LANCZOS)
    array = np.asarray(ImageOps.mirror(square) if flip else square, dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)


if __name__ == "__main__":
    main()
