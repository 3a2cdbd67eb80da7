"""The toybox base: a UNet that learns to draw the toy world under the CLIP pair's text tower, and their assembly.

The model has the parts and module names of Stable Diffusion 1.5, smaller: a 16×16 latent and three levels. It predicts
v (Salimans & Ho 2022) under a cosine noise schedule. A small network cannot learn everything, so its training dwells on
what people look at: on noisy timesteps, where outlines are decided (below SNR 0.3, where min-SNR weights of γ 5 leave a
twelfth of the training, they fell apart), and on the places that things cover, not on every leaf behind them.
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
from toybox.captions import caption_of, draw_caption
from toybox.clip import TEXT_WIDTH, text_config
from toybox.inherit import inherit_unet
from toybox.loop import Budget, Progress, Training, autocast, load_checkpoint, read_progress
from toybox.shards import Shard
from toybox.tokenizer import save_tokenizer, tokenise
from toybox.world import Label
from training.objective import sample_timesteps


@dataclass(frozen=True)
class BaseRecipe:
    """How wide the UNet is at its three levels, and how the base is trained."""

    channels: tuple[int, int, int] = (96, 160, 224)
    batch: int = 64
    learning_rate: float = 1.2e-3
    ema_decay: float = 0.998
    thing_weight: float = 4.0
    """How much more an error counts where things are, and a place around them, than elsewhere."""
    timestep_bias: float = 0.65
    """Timesteps are a uniform number's power of this: below 1, noisy ones are met more often."""
    compile: bool = False
    """Compile the UNet first: a minute or three for half as much speed again."""
    seed: int = 0


@dataclass(frozen=True)
class RedrawRecipe:
    """How the base redraws pictures for the decoder: from which timesteps on, in how many steps, how strictly."""

    least: int = 200
    most: int = 600
    steps: int = 4
    guidance_scale: float = 3.0
    batch: int = 64
    seed: int = 0


def new_unet(latent_channels: int, channels: tuple[int, int, int]) -> UNet2DConditionModel:
    """An untrained UNet for 16×16 latents; 17 M parameters at the usual width.

    Attention sits at 8×8 and 4×4, and at 16×16 on the way out: an adapter of attention must reach where outlines are
    drawn, or it teaches colours and no shapes.
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
        # the whole caption also joins the time embedding: levels without attention hear of it too
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def new_scheduler() -> DDIMScheduler:
    """The noise schedule of training and sampling; it ends in pure noise, so flat backgrounds come out true."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


class Base(nn.Module):
    """The base's two trained parts: `unet`, and `text_encoder`, which the CLIP pair lends it."""

    def __init__(self, tokenizer: CLIPTokenizer, latent_channels: int, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.unet = new_unet(latent_channels, channels)
        self.text_encoder = CLIPTextModel(text_config(tokenizer))

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """The v predicted for noisy latents (N, C, h, w) at timesteps (N) under captions (N, MAX_LENGTH)."""
        text = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, timesteps, encoder_hidden_states=text).sample


@dataclass(frozen=True)
class Lessons(Dataset[tuple[Tensor, Tensor]]):
    """What the step of each number learns from: `batch` random pictures' numbers (N), and a fresh caption's tokens for
    each (N, MAX_LENGTH).
    """

    labels: Sequence[Label]
    tokenizer: CLIPTokenizer
    batch: int
    seed: int

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Equal steps give equal lessons."""
        rng = np.random.default_rng(self.seed + step)
        chosen = rng.integers(len(self.labels), size=self.batch)
        captions = [draw_caption(self.labels[index], rng) for index in chosen.tolist()]
        return torch.from_numpy(chosen), tokenise(self.tokenizer, captions)

    def since(self, step: int, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
        """The lessons from `step` on, without end, prepared by as many processes beside this one."""
        return DataLoader(self, batch_size=None, sampler=range(step, sys.maxsize), num_workers=workers)


def place_weights(covers: Tensor | None, thing_weight: float) -> Tensor:
    """What an error counts at each place of latents: (N, 1, h, w), with a mean of 1, from uint8 covers (N, h, w).

    Places beside a thing count as the thing: its outline may still be anywhere there.
    """
    if covers is None:
        return torch.ones(1, 1, 1, 1)
    near = F.max_pool2d((covers[:, None] > 16).float(), 3, stride=1, padding=1)
    weights = 1 + (thing_weight - 1) * near
    return weights / weights.mean()


def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the running average of weights towards `model`; it is short at first, to forget the start."""
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
    """Train the UNet on latents and their labels under the text tower of `clip`, which stands still.

    Continues from `checkpoint` if it exists; otherwise starts from the pipeline folder `ancestor`, or from nothing.
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
        # a CPU takes longer over fused attention's backward pass than over the plain one's, at this size
        base.unet.set_attn_processor(AttnProcessor())
    if recipe.compile:
        base.unet.compile(dynamic=False)
    values, covers = latents.values.to(device), None if latents.covers is None else latents.covers.to(device)
    # a CPU that trains has no time to spare; a GPU would wait for captions
    workers = 0 if device.type == "cpu" else max(1, (os.cpu_count() or 1) - 2)
    lessons = Lessons(latents.labels, tokenizer, recipe.batch, recipe.seed)
    upcoming = iter(lessons.since(read_progress(checkpoint).step, workers))

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
        weights = place_weights(None if covers is None else covers[chosen], recipe.thing_weight).to(device)
        return (weights * (predicted.float() - target).square()).mean()

    def average_weights(step: int) -> None:
        update_average(average, base, step, recipe.ema_decay)

    modules: dict[str, nn.Module] = {"base": base, "average": average}
    training = Training("base", modules, list(base.unet.parameters()), checkpoint, recipe.learning_rate, recipe.batch)
    return training.run(budget, loss_of, average_weights)


def load_average(checkpoint: Path, tokenizer: CLIPTokenizer, latent_channels: int, recipe: BaseRecipe) -> Base:
    """The averaged weights of a checkpoint, ready to draw with."""
    base = Base(tokenizer, latent_channels, recipe.channels)
    load_checkpoint(checkpoint, {"average": base})
    return base.eval()


@torch.no_grad()
def redraw(base: Base, latents: Shard, tokenizer: CLIPTokenizer, recipe: RedrawRecipe) -> Tensor:
    """Latents (N, C, h, w) as the base draws them: noised halfway, and denoised in a few guided steps.

    What comes back shows the same, with the base's own faults: a decoder can learn from the pair to mend them.
    """
    device, scheduler = next(base.parameters()).device, new_scheduler()
    alphas = scheduler.alphas_cumprod
    generator, redrawn = torch.Generator().manual_seed(recipe.seed), []
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
            said, unsaid = both.chunk(2)
            velocity = unsaid + recipe.guidance_scale * (said - unsaid)
            # v-prediction's picture and noise (Salimans & Ho 2022), and DDIM's step from them
            signal, spread = alphas[time].sqrt(), (1 - alphas[time]).sqrt()
            picture, noise = signal * noisy - spread * velocity, signal * velocity + spread * noisy
            noisy = picture
            if following:
                noisy = alphas[following].sqrt() * picture + (1 - alphas[following]).sqrt() * noise
        redrawn.append(noisy.half().cpu())
    return torch.cat(redrawn)


def assemble(base: Base, vae: AutoencoderKL, tokenizer: CLIPTokenizer, card: str, folder: Path) -> None:
    """Write all parts and the model card as one float16 StableDiffusionPipeline folder, whole or not at all."""
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
        # a text encoder stored in float16 loads in float32, as diffusers' own parts do unless told otherwise
        amend(unfinished / "text_encoder" / "config.json", dtype="float32")
        # diffusers writes down where a part was read from
        amend(unfinished / "vae" / "config.json", _name_or_path="")
        (unfinished / "README.md").write_text(card)


def amend(config: Path, **values: str) -> None:
    """Set values in a part's JSON configuration."""
    config.write_text(json.dumps(json.loads(config.read_text()) | values, indent=2) + "\n")
