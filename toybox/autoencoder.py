"""The autoencoder: a small AutoencoderKL between 128×128 images and 16×16 latents with 12 channels.

Its encoder is set in closed form (see ``patches``) and only its decoder is trained, so latents never change: the base
model can train on them at once, and the decoder can be trained further at any time.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from hra_diffusion.evaluation.judge import normalize
from toybox.loop import Budget, Training, autocast
from toybox.patches import PATCH, fit_patch_code, set_encoder_weights

LATENT_CHANNELS = 12


@dataclass(frozen=True)
class DecoderRecipe:
    """Hyperparameters of the decoder's training."""

    batch: int = 8
    crop: int = 64
    whole_from: float = 0.65
    """Fraction of the budget after which whole images replace crops, so that group norms see inference statistics."""
    learning_rate: float = 1e-3
    latent_noise: float = 0.25
    """Maximum standard deviation of the noise added to latents; sampled from 0 to this for each image."""
    seed: int = 0


def new_autoencoder(images: Tensor) -> AutoencoderKL:
    """Create an autoencoder whose encoder is the patch code of ``images`` (uint8), with an untrained decoder.

    It has 2 M parameters and no attention; an image decodes in some hundredths of a second.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType] - diffusers says tuple[str]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        block_out_channels=(16, 48, 96, 96),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        # the patch code has unit variance
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    set_encoder_weights(vae, fit_patch_code(images, LATENT_CHANNELS))
    return vae


def encode_mean(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode images (N, 3, H, W) in [−1, 1] to the posterior mean (N, C, H/8, W/8)."""
    return vae.encode(pixels, return_dict=False)[0].mean


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode latents (N, C, h, w) to images (N, 3, 8h, 8w), about in [−1, 1]."""
    return vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportReturnType, reportArgumentType]


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch: int = 32) -> Tensor:
    """Encode uint8 images (N, H, W, 3) to the posterior mean (N, C, h, w) in batches."""
    device = vae.device
    with autocast(device):
        means = [encode_mean(vae, normalize(part).to(device)).float().cpu() for part in images.split(batch)]
    return torch.cat(means)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode and decode uint8 images (N, H, W, 3) in float32."""
    batches = [normalize(part).to(vae.device) for part in images.split(16)]
    restored = [decode(vae, encode_mean(vae, pixels)) for pixels in batches]
    levels = (torch.cat(restored).cpu().clamp(-1, 1) + 1) * 127.5
    return levels.round().byte().permute(0, 2, 3, 1)


def mean_psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Return the mean PSNR in dB of reconstructed uint8 images (N, H, W, 3)."""
    error = (reconstruct(vae, images).float() - images.float()).pow(2).mean((1, 2, 3))
    return (10 * torch.log10(255**2 / error)).mean().item()


def sample_positions(total: int, room: int, count: int, generator: torch.Generator) -> list[tuple[int, int, int]]:
    """Sample ``count`` crops: index of one of ``total`` images, and the crop's row and column in [0, ``room``]."""
    corners = torch.randint(room + 1, (count, 2), generator=generator).tolist()
    indices = torch.randint(total, (count,), generator=generator).tolist()
    return [(index, y, x) for index, (y, x) in zip(indices, corners, strict=True)]


def sample_crops(images: Tensor, side: int, count: int, generator: torch.Generator) -> Tensor:
    """Sample ``count`` square crops of random images: uint8 (count, side, side, 3)."""
    positions = sample_positions(len(images), images.shape[1] - side, count, generator)
    return torch.stack([images[index, y : y + side, x : x + side] for index, y, x in positions])


def sample_batch(images: Tensor, recipe: DecoderRecipe, step: int, used: float) -> Tensor:
    """Sample the images of a step: crops at first, later whole images with as many pixels in total."""
    generator = torch.Generator().manual_seed(recipe.seed + step)
    whole = images.shape[1]
    if used < recipe.whole_from:
        return sample_crops(images, recipe.crop, recipe.batch, generator)
    return sample_crops(images, whole, max(1, recipe.batch * recipe.crop**2 // whole**2), generator)


def sample_denoised(images: Tensor, denoised: Tensor, recipe: DecoderRecipe, step: int) -> tuple[Tensor, Tensor]:
    """Sample crops of random images, and the same crops of their partially denoised latents."""
    generator = torch.Generator().manual_seed(recipe.seed + step)
    side = recipe.crop // PATCH
    crops, latents = [], []
    for index, y, x in sample_positions(len(denoised), denoised.shape[-1] - side, recipe.batch, generator):
        latents.append(denoised[index, :, y : y + side, x : x + side])
        rows, columns = (slice(PATCH * start, PATCH * start + recipe.crop) for start in (y, x))
        crops.append(images[index, rows, columns])
    return torch.stack(crops), torch.stack(latents).float()


def add_noise(latents: Tensor, most: float, seed: int) -> Tensor:
    """Add noise to latents (N, C, h, w), with a standard deviation from 0 to ``most`` for each image."""
    generator = torch.Generator().manual_seed(seed)
    deviations = most * torch.rand(len(latents), 1, 1, 1, generator=generator)
    return latents + (deviations * torch.randn(latents.shape, generator=generator)).to(latents.device)


def train_decoder(
    vae: AutoencoderKL, images: Tensor, denoised: Tensor, checkpoint: Path, budget: Budget, recipe: DecoderRecipe
) -> None:
    """Train the decoder on uint8 images (N, H, W, 3), continuing from ``checkpoint`` if it exists.

    Even steps use latents with random noise, odd steps those of the first images after partial denoising by the base
    model (``denoised``), whose patches don't match perfectly and whose outlines are uneven. The decoder learns to
    correct both.
    """
    vae.encoder.requires_grad_(False)
    assert vae.quant_conv is not None and vae.post_quant_conv is not None
    vae.quant_conv.requires_grad_(False)
    parameters = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]

    def loss_fn(step: int, used: float) -> Tensor:
        if step % 2:
            crops, latents = sample_denoised(images, denoised, recipe, step)
            with autocast(vae.device):
                restored = decode(vae, latents.to(vae.device)).float()
            # L1 alone: its optimum is a median, so an uncertain outline is not blurred
            return F.l1_loss(restored, normalize(crops).to(vae.device))
        pixels = normalize(sample_batch(images, recipe, step, used)).to(vae.device)
        with autocast(vae.device):
            latents = add_noise(encode_mean(vae, pixels), recipe.latent_noise, recipe.seed + step)
            restored = decode(vae, latents).float()
        return F.l1_loss(restored, pixels) + F.mse_loss(restored, pixels)

    Training("decoder", {"vae": vae}, parameters, checkpoint, recipe.learning_rate, recipe.batch).run(budget, loss_fn)
