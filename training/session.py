"""What a run holds while it trains, and how it is set up."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_file, attachment, fingerprint
from hra_diffusion.errors import UserError
from hra_diffusion.generation.requests import Request, prompt_notes
from hra_diffusion.libraries import import_bitsandbytes
from hra_diffusion.models import families, noise
from hra_diffusion.models.families import Text
from hra_diffusion.models.families.sdxl import uncropped_time_ids
from hra_diffusion.models.noise import NoiseProcess
from hra_diffusion.models.prompts import split, without_weights
from training.config import TrainConfig
from training.data import class_images
from training.data.captions import final_captions
from training.data.dataset import Dataset
from training.data.latent_cache import LatentCache, encode, photo_time_ids
from training.rank_matching import layers_to_adapt
from training.runs.events import Event, Listener, Notice, Phase
from training.runs.run_folder import Run


class TrainingError(UserError, RuntimeError):
    """Training can't go on: what happened, what is kept, what to change."""


class Denoiser(nn.Module):
    """UNet and, where they learn too, text encoders as one module, so that one wrapper serves several processes."""

    def __init__(self, pipe: StableDiffusionPipeline, with_text: bool):
        super().__init__()
        self.family, self.pixels = families.of(pipe), pipe.vae_scale_factor
        self.unet = pipe.unet
        self.encoders = nn.ModuleList(families.text_encoders(pipe) if with_text else [])

    def forward(self, latents: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """Prediction (B, C, h, w) for noisy latents, timesteps (B,) and token ids or embeddings."""
        if self.encoders:
            text = text | self.family.embed(list(self.encoders), text["ids"])
        dtype = next(self.unet.parameters()).dtype
        # bfloat16 would round a photo's size
        text = {key: value if key == "time_ids" else value.to(dtype) for key, value in text.items()}
        added = self.family.added_cond_kwargs(text, latents.shape[-1] * self.pixels)
        return self.unet(latents.to(dtype), timesteps, text["hidden"], added_cond_kwargs=added).sample


@dataclass
class PhaseTimer:
    """Tells the listeners (of the main process) what happens and keeps the seconds of each phase."""

    speaking: bool
    listeners: list[Listener]
    phases: dict[str, float] = field(default_factory=dict)
    _told: list[Event] = field(default_factory=list)
    _elsewhere: float = 0.0
    _open: list[tuple[str, float, float]] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        """Tell every listener."""
        self._told.append(event)
        for listener in self.listeners if self.speaking else ():
            listener(event)

    def add(self, listener: Listener) -> None:
        """A listener that comes late is told what it missed."""
        for event in self._told if self.speaking else ():
            listener(event)
        self.listeners.append(listener)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase and add up its seconds, without those of phases within it."""
        self.emit(Phase(name))
        self._open.append((name, time.perf_counter(), self._elsewhere))
        try:
            yield
        finally:
            self._close(self._open.pop(), time.perf_counter())

    def seconds(self) -> dict[str, float]:
        """The seconds of each phase until now, of those that are not over too."""
        now, later = time.perf_counter(), replace(self, phases=dict(self.phases))
        for phase in reversed(self._open):
            later._close(phase, now)
        return later.phases

    def go_on_from(self, phases: Mapping[str, float]) -> None:
        """Count the seconds of an earlier session too."""
        for name, seconds in phases.items():
            self.phases[name] = round(self.phases.get(name, 0) + seconds, 2)

    def _close(self, phase: tuple[str, float, float], now: float) -> None:
        name, start, outside = phase
        self.phases[name] = round(self.phases.get(name, 0) + now - start - (self._elsewhere - outside), 2)
        self._elsewhere = outside + now - start


@dataclass
class Session:
    """Everything a run holds while it trains."""

    config: TrainConfig
    run: Run
    accelerator: Accelerator
    clock: PhaseTimer
    pipe: StableDiffusionPipeline
    denoiser: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizer: Any
    photos: LatentCache
    class_images: LatentCache | None
    averages: dict[str, Tensor]
    fingerprint: dict[str, dict[str, float]]
    album: Dataset
    process: NoiseProcess
    step: int = 0
    skipped: int = 0

    @property
    def trained(self) -> dict[str, nn.Module]:
        """The components that learn, by name."""
        models = pipeline.components(self.pipe)
        return models if self.config.train_text_encoder else {"unet": models["unet"]}


def set_up(
    config: TrainConfig,
    run: Run,
    accelerator: Accelerator,
    pipe: StableDiffusionPipeline,
    album: Dataset,
    clock: PhaseTimer,
) -> Session:
    """Class images, caches, adapter, optimiser; and the last checkpoint where there is one."""
    for note in album.warnings:
        clock.emit(Notice(note.message))
    photos, class_images = cache_examples(config, run, accelerator, pipe, album, clock)
    parameters = add_adapter(config, pipe)
    denoiser = Denoiser(pipe, config.train_text_encoder).train()
    if config.gradient_checkpointing:
        checkpoint_gradients(pipe)
    denoiser, optimizer = accelerator.prepare(denoiser, make_optimizer(config, parameters))
    averages = {key: value.detach().clone() for key, value in parameters.items()} if config.ema_decay else {}
    probes = fingerprint.adapter_fingerprint(pipeline.components(pipe), config.name)
    return Session(
        config, run, accelerator, clock, pipe, denoiser, parameters, optimizer, photos, class_images, averages, probes,
        album, noise.of(pipe.scheduler),
    )  # fmt: skip


def make_optimizer(config: TrainConfig, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW as the configuration says. Raises TrainingError where it asks for a package that is missing.

    ``part`` of a group of parameters: what part of the learning rate they take.
    """
    parts = {key: 1.0 if key.startswith("unet.") else config.text_encoder_lr_scale for key in parameters}
    groups = [
        {"params": [parameters[key] for key in parameters if parts[key] == part], "part": part}
        for part in dict.fromkeys(parts.values())
    ]
    common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        # the loss scaler of float16 can't tell whether a fused optimiser skipped its step
        return torch.optim.AdamW(groups, fused=config.mixed_precision != "fp16", **common)
    try:
        optimizers = import_bitsandbytes().optim
    except ImportError:
        raise TrainingError("--optimizer adamw8bit needs bitsandbytes: pip install 'hra-diffusion[8bit]'") from None
    return optimizers.AdamW8bit(groups, **common)


def checkpoint_gradients(pipe: StableDiffusionPipeline) -> None:
    """Have UNet and text encoders recompute in the backward pass what they would keep: less memory, more time."""
    pipe.unet.enable_gradient_checkpointing()
    for encoder in cast(list[Any], families.text_encoders(pipe)):
        _checkpoint_activations(encoder, "enable")


def cache_examples(
    config: TrainConfig,
    run: Run,
    accelerator: Accelerator,
    pipe: StableDiffusionPipeline,
    album: Dataset,
    clock: PhaseTimer,
) -> tuple[LatentCache, LatentCache | None]:
    """Photos and, with prior preservation, class images as cached latents and text."""
    captions = list(final_captions(config, {photo.path: photo.caption for photo in album.photos}).captions.values())
    for note in text_notes(config, pipe, captions):
        clock.emit(Notice(note))
    images, embed = [photo.image for photo in album.photos], not config.train_text_encoder
    size = images[0].size[0]
    class_pictures: list[Image.Image] = []
    if config.prior_loss_weight:
        with clock.phase("class images"), accelerator.main_process_first():
            folder = run.folder.parent / ".cache" / "class-images"
            asked = (config.class_noun, config.num_class_images, size, folder, config.sample_batch_size)
            class_pictures = list(class_images.class_images(pipe, *asked))
    photo_ids = class_ids = None
    if config.size_conditioning and families.size_conditioned(pipe.unet.config):
        photo_ids = torch.stack([photo_time_ids(photo, config.flip) for photo in album.photos])
        class_ids = uncropped_time_ids(size).float().expand(len(class_pictures), 1, -1)
    with clock.phase("cache"):
        photos = encode(pipe, images, captions, config.flip, embed, photo_ids)
        prompts = [class_images.class_prompt(config.class_noun)] * len(class_pictures)
        class_examples = encode(pipe, class_pictures, prompts, False, embed, class_ids) if class_pictures else None
    offload(pipe, config)
    return photos, class_examples


def text_notes(config: TrainConfig, pipe: StableDiffusionPipeline, captions: Sequence[str]) -> list[str]:
    """What the author of captions and sample prompts should know: what is cut, and what is read in another way."""
    found = []
    for caption in captions:
        if cut := split(families.tokenizer(pipe), caption)[1]:
            found.append(f"a caption is longer than the text encoder reads; these words are cut: “{cut}”")
        if without_weights(caption) != caption:
            found.append(f"captions carry no weights; “{caption}” is learned as it is written")
    samples = [Request(prompt.replace("{subject}", config.subject), config.seed) for prompt in config.sample_prompts]
    return list(dict.fromkeys([*found, *(f"sample prompts: {note}" for note in prompt_notes(pipe, samples))]))


def add_adapter(config: TrainConfig, pipe: StableDiffusionPipeline) -> dict[str, nn.Parameter]:
    """Attach the new adapter; returns its parameters by file key. Raises TrainingError if the base can't hold it."""
    require_room(config, pipe)
    for encoder in families.text_encoders(pipe):
        attachment.freeze(encoder)
    for number, (model, targets) in enumerate(layers_to_adapt(config, pipe)):
        attachment.attach(
            model, config.method, config.options, name=config.name, targets=targets, seed=config.seed + number
        )
    return adapter_file.parameters(pipeline.components(pipe), config.name)


def require_room(config: TrainConfig, pipe: StableDiffusionPipeline) -> None:
    """Raises TrainingError if the base can't hold the adapter: an odd target, a rank too large, a name in use."""
    try:
        for model, targets in layers_to_adapt(config, pipe):
            attachment.plan_attachment(model, config.method, config.options, name=config.name, targets=targets)
    except ValueError as error:
        raise TrainingError(f"{config.method} can't be put on {config.base}: {error}") from error


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Devices, precision and processes, anew for each run. Raises TrainingError for a precision the device lacks."""
    # cuDNN's attention in bfloat16 can give NaN gradients where the number of tokens fills no whole tile, on GPUs for
    # which PyTorch prefers it (github.com/pytorch/pytorch/issues/196678); the other kernels take as long
    torch.backends.cuda.enable_cudnn_sdp(False)
    AcceleratorState._reset_state(reset_partial_state="WORLD_SIZE" not in os.environ)
    try:
        accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            # the others wait while the main process draws class images
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
        )
    except ValueError as error:
        raise TrainingError(f"--mixed-precision {config.mixed_precision} can't be used here: {error}") from error
    if config.device and accelerator.device.type != config.device:
        raise TrainingError(f"no {config.device} device is available here; use --device cpu")
    return accelerator


def offload(pipe: StableDiffusionPipeline, config: TrainConfig) -> None:
    """Move what training does not use off the accelerator: the VAE, and text encoders that stand still.

    Without an accelerator there is one memory only, and they stay in it.
    """
    for model in _idle(pipe, config):
        model.to("cpu")
    if pipe.unet.device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def restore_eval(pipe: StableDiffusionPipeline) -> Iterator[None]:
    """After the block the pipeline can draw again: its models are on one device, and none is set up for training."""
    try:
        yield
    finally:
        encoders = cast(list[Any], families.text_encoders(pipe))
        for model in (pipe.unet, *encoders, pipe.vae):
            model.to(pipe.unet.device).eval()
        pipe.unet.disable_gradient_checkpointing()
        for encoder in encoders:
            _checkpoint_activations(encoder, "disable")


@contextlib.contextmanager
def onload(pipe: StableDiffusionPipeline, config: TrainConfig) -> Iterator[None]:
    """Within the block the parked models are beside the UNet."""
    for model in _idle(pipe, config):
        model.to(pipe.unet.device)
    try:
        yield
    finally:
        offload(pipe, config)


def _idle(pipe: StableDiffusionPipeline, config: TrainConfig) -> list[nn.Module]:
    return [pipe.vae] if config.train_text_encoder else [pipe.vae, *families.text_encoders(pipe)]


def _checkpoint_activations(encoder: Any, verb: str) -> None:
    """Verb: "enable" or "disable". Before transformers 5.23 it had another name, of which later ones warn."""
    switch = getattr(encoder, f"activation_checkpointing_{verb}", None)
    (switch or getattr(encoder, f"gradient_checkpointing_{verb}"))()
