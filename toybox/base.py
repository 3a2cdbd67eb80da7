"""The base model: training of the UNet with the CLIP model's text encoder, and assembly of the pipeline.

The model has the components and module names of Stable Diffusion 1.5, smaller: 16×16 latents and three levels. It uses
v-prediction (Salimans & Ho 2022) and a cosine noise schedule. Its small capacity is spent on noisy timesteps, which
decide outlines, and on the area that things cover. (Min-SNR weighting with γ = 5 leaves SNR below 0.3 a twelfth of the
training; outlines fell apart.)
"""

import json
import os
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from hra_diffusion.files import atomic_path
from toybox.captions import caption_of, sample_caption
from toybox.clip import TEXT_WIDTH, text_config
from toybox.inherit import inherit_unet
from toybox.labels import Label
from toybox.loop import Budget, Progress, Training, autocast, load_checkpoint, read_progress
from toybox.shards import Shard
from toybox.tokenizer import save_tokenizer, tokenise
from training.objective import sample_timesteps


@dataclass(frozen=True)
class BaseRecipe:
    """Channels of the UNet's three levels, and the hyperparameters of its training."""

    channels: tuple[int, int, int] = (96, 160, 224)
    batch: int = 64
    learning_rate: float = 1.2e-3
    ema_decay: float = 0.998
    object_weight: float = 4.0
    """Loss weight of latents that things cover, and of their neighbours, relative to the background."""
    timestep_bias: float = 0.65
    """Exponent of the uniform number that timesteps are sampled from: below 1, noisy ones are more frequent."""
    compile: bool = False
    """Compile the UNet: one to three minutes, then 1.5 times the speed."""
    seed: int = 0


@dataclass(frozen=True)
class PartialDenoising:
    """How latents are partially noised and denoised for the decoder's training (as SDEdit does)."""

    least: int = 200
    most: int = 600
    steps: int = 4
    guidance_scale: float = 3.0
    batch: int = 64
    seed: int = 0


def new_unet(latent_channels: int, channels: tuple[int, int, int]) -> UNet2DConditionModel:
    """Create an untrained UNet for 16×16 latents; 17 M parameters by default.

    Attention is at 8×8 and 4×4, and at 16×16 in the decoder: without it, adapters of attention learn colours but no
    shapes.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        # diffusers reads this as the number of heads
        attention_head_dim=4,
        # the pooled caption is added to the time embedding, so that blocks without attention are conditioned too
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def new_scheduler() -> DDIMScheduler:
    """Create the noise scheduler; it has zero terminal SNR, so that flat backgrounds keep their brightness."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


class Base(nn.Module):
    """The UNet and the text encoder, which is the CLIP model's."""

    def __init__(self, tokenizer: CLIPTokenizer, latent_channels: int, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.unet = new_unet(latent_channels, channels)
        self.text_encoder = CLIPTextModel(text_config(tokenizer))

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Predict v for noisy latents (N, C, h, w), timesteps (N,) and token ids (N, MAX_LENGTH)."""
        text = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, timesteps, encoder_hidden_states=text).sample


@dataclass(frozen=True)
class CaptionedBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batch of each training step: indices of random images (N,) and token ids of sampled captions (N, MAX_LENGTH)."""

    labels: Sequence[Label]
    tokenizer: CLIPTokenizer
    batch: int
    seed: int

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step, a deterministic function of its number."""
        rng = np.random.default_rng(self.seed + step)
        chosen = rng.integers(len(self.labels), size=self.batch)
        captions = [sample_caption(self.labels[index], rng) for index in chosen.tolist()]
        return torch.from_numpy(chosen), tokenise(self.tokenizer, captions)

    def since(self, step: int, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return an endless loader of the batches from ``step`` on, with ``workers`` processes."""
        return DataLoader(self, batch_size=None, sampler=range(step, sys.maxsize), num_workers=workers)


def place_weights(covers: Tensor | None, object_weight: float) -> Tensor:
    """Return loss weights (N, 1, h, w) with a mean of 1 from uint8 covers (N, h, w).

    The neighbours of a covered latent count as covered, because outlines lie there.
    """
    if covers is None:
        return torch.ones(1, 1, 1, 1)
    near = F.max_pool2d((covers[:, None] > 16).float(), 3, stride=1, padding=1)
    weights = 1 + (object_weight - 1) * near
    return weights / weights.mean()


def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Update the exponential moving average of the weights; its decay starts low and rises to ``decay``."""
    pace = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), pace)


def train_base(
    latents: Shard,
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    budget: Budget,
    device: torch.device,
    recipe: BaseRecipe,
    clip: CLIPModel,
    ancestor: Path | None = None,
) -> Progress:
    """Train the UNet on latents and their labels with the frozen text encoder of ``clip``.

    Continues from ``checkpoint`` if it exists; otherwise starts from the pipeline folder ``ancestor``, or from scratch.
    """
    torch.manual_seed(recipe.seed)
    base = Base(tokenizer, latents.values.shape[1], recipe.channels).to(device)
    base.text_encoder.load_state_dict(clip.text_model.state_dict())
    base.text_encoder.requires_grad_(False)
    if ancestor is not None:
        inherit_unet(base.unet, ancestor)
    average = deepcopy(base).requires_grad_(False)
    scheduler = new_scheduler()
    if device.type == "cpu":
        # at this size the backward pass of fused attention is slower on a CPU
        base.unet.set_attn_processor(AttnProcessor())
    if recipe.compile:
        base.unet.compile(dynamic=False)
    values, covers = latents.values.to(device), None if latents.covers is None else latents.covers.to(device)
    # on a CPU workers would take cores from training; a GPU would wait for captions
    workers = 0 if device.type == "cpu" else max(1, (os.cpu_count() or 1) - 2)
    batches = CaptionedBatches(latents.labels, tokenizer, recipe.batch, recipe.seed)
    upcoming = iter(batches.since(read_progress(checkpoint).step, workers))

    def loss_of(step: int, spent: float) -> Tensor:
        chosen, tokens = (part.to(device) for part in next(upcoming))
        clean = values[chosen].float()
        generator = torch.Generator(device).manual_seed(recipe.seed + step)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = sample_timesteps(recipe.batch, len(scheduler.alphas_cumprod), recipe.timestep_bias, generator)
        noisy = scheduler.add_noise(clean, noise, timesteps)  # pyright: ignore[reportArgumentType]
        target = scheduler.get_velocity(clean, noise, timesteps)  # pyright: ignore[reportArgumentType]
        with autocast(device):
            predicted = base(noisy, timesteps, tokens)
        weights = place_weights(None if covers is None else covers[chosen], recipe.object_weight).to(device)
        return (weights * (predicted.float() - target).square()).mean()

    def average_weights(step: int) -> None:
        update_average(average, base, step, recipe.ema_decay)

    modules: dict[str, nn.Module] = {"base": base, "average": average}
    training = Training("base", modules, list(base.unet.parameters()), checkpoint, recipe.learning_rate, recipe.batch)
    return training.run(budget, loss_of, average_weights)


def load_average(checkpoint: Path, tokenizer: CLIPTokenizer, latent_channels: int, recipe: BaseRecipe) -> Base:
    """Load the averaged weights of a checkpoint, in eval mode."""
    base = Base(tokenizer, latent_channels, recipe.channels)
    load_checkpoint(checkpoint, {"average": base})
    return base.eval()


@torch.no_grad()
def denoise_partially(base: Base, latents: Shard, tokenizer: CLIPTokenizer, recipe: PartialDenoising) -> Tensor:
    """Partially noise latents (N, C, h, w) and denoise them with the base model in a few guided steps.

    The result shows the same content with the base model's own errors, which the decoder learns to correct.
    """
    device, scheduler = next(base.parameters()).device, new_scheduler()
    alphas = scheduler.alphas_cumprod
    generator, denoised = torch.Generator().manual_seed(recipe.seed), []
    for first in range(0, len(latents.labels), recipe.batch):
        part = slice(first, first + recipe.batch)
        captions = [caption_of(label) for label in latents.labels[part]]
        tokens = tokenise(tokenizer, captions + [""] * len(captions)).to(device)
        clean = latents.values[part].float()
        start = torch.randint(recipe.least, recipe.most, (1,), generator=generator).item()
        times = torch.linspace(start, 0, recipe.steps + 1).long().tolist()
        noise = torch.randn(clean.shape, generator=generator)
        noisy = scheduler.add_noise(clean, noise, torch.tensor(times[:1])).to(device)  # pyright: ignore[reportArgumentType]
        for time, following in pairwise(times):
            with autocast(device):
                both = base(noisy.repeat(2, 1, 1, 1), torch.full((len(tokens),), time, device=device), tokens).float()
            conditional, unconditional = both.chunk(2)
            velocity = unconditional + recipe.guidance_scale * (conditional - unconditional)
            # image and noise from v (Salimans & Ho 2022), then a DDIM step
            signal, spread = alphas[time].sqrt(), (1 - alphas[time]).sqrt()
            picture, noise = signal * noisy - spread * velocity, signal * velocity + spread * noisy
            noisy = picture
            if following:
                noisy = alphas[following].sqrt() * picture + (1 - alphas[following]).sqrt() * noise
        denoised.append(noisy.half().cpu())
    return torch.cat(denoised)


def assemble(base: Base, vae: AutoencoderKL, tokenizer: CLIPTokenizer, card: str, folder: Path) -> None:
    """Write a float16 StableDiffusionPipeline folder with its model card, atomically."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=base.text_encoder,
        tokenizer=tokenizer,
        unet=base.unet,
        scheduler=new_scheduler(),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    with atomic_path(folder) as unfinished:
        pipeline.to(torch.float16).save_pretrained(unfinished)
        save_tokenizer(tokenizer, unfinished / "tokenizer")
        # transformers would load a float16 text encoder in float16; diffusers' components load in float32
        update_json(unfinished / "text_encoder" / "config.json", dtype="float32")
        # diffusers stores the path that a component was loaded from
        update_json(unfinished / "vae" / "config.json", _name_or_path="")
        (unfinished / "README.md").write_text(card)


def update_json(config: Path, **values: str) -> None:
    """Update values in a JSON file."""
    config.write_text(json.dumps(json.loads(config.read_text()) | values, indent=2) + "\n")
