"""The toybox autoencoder: 128×128 pictures to 16×16 latents of twelve channels and back (a small AutoencoderKL).

Its encoder is set in closed form (`patches`) and its decoder is trained, so latents never change: the base can learn on
them at once, and the decoder can go on learning whenever there is time.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from toybox.loop import Budget, Training, autocast
from toybox.patches import PATCH, fit_patch_code, set_encoder_weights

LATENT_CHANNELS = 12


@dataclass(frozen=True)
class DecoderRecipe:
    """How the decoder is trained."""

    batch: int = 8
    crop: int = 64
    whole_from: float = 0.65
    """From this part of the budget on, whole pictures instead of crops: group norms see what they will see in use."""
    learning_rate: float = 1e-3
    latent_noise: float = 0.25
    """Largest deviation of the noise on the latents: each picture has its own, from none to this."""
    seed: int = 0


def new_autoencoder(pictures: Tensor) -> AutoencoderKL:
    """An autoencoder whose encoder is the patch code of `pictures` (uint8) and whose decoder is untrained.

    2 M parameters, without attention: a picture decodes in a few hundredths of a second.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType] - diffusers says tuple[str]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        block_out_channels=(16, 48, 96, 96),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        # the patch code is of unit size already
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    set_encoder_weights(vae, fit_patch_code(pictures, LATENT_CHANNELS))
    return vae


def to_signal(pictures: Tensor) -> Tensor:
    """uint8 pictures (N, H, W, 3) as the float (N, 3, H, W) in −1…1 that the autoencoder takes."""
    return (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def draw_crops(pictures: Tensor, side: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` square crops at random places of random pictures: uint8 (count, side, side, 3)."""
    places = draw_places(len(pictures), pictures.shape[1] - side, count, generator)
    return torch.stack([pictures[number, y : y + side, x : x + side] for number, y, x in places])


def draw_places(total: int, room: int, count: int, generator: torch.Generator) -> list[tuple[int, int, int]]:
    """`count` crops of chance: the number of one of `total` pictures, and the crop's row and column, 0 to `room`."""
    corners = torch.randint(room + 1, (count, 2), generator=generator).tolist()
    chosen = torch.randint(total, (count,), generator=generator).tolist()
    return [(number, y, x) for number, (y, x) in zip(chosen, corners, strict=True)]


def to_latents(vae: AutoencoderKL, signal: Tensor) -> Tensor:
    """The mean of the encoder's posterior: (N, 3, H, W) in −1…1 to (N, C, H/8, W/8)."""
    return vae.encode(signal, return_dict=False)[0].mean


def to_restored(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The decoder's picture: (N, C, h, w) to (N, 3, 8h, 8w) in about −1…1."""
    return vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportReturnType, reportArgumentType]


def draw_batch(pictures: Tensor, recipe: DecoderRecipe, step: int, spent: float) -> Tensor:
    """The pictures of one step: crops at first, later as many pixels of whole pictures."""
    generator = torch.Generator().manual_seed(recipe.seed + step)
    whole = pictures.shape[1]
    if spent < recipe.whole_from:
        return draw_crops(pictures, recipe.crop, recipe.batch, generator)
    return draw_crops(pictures, whole, max(1, recipe.batch * recipe.crop**2 // whole**2), generator)


def disturbed(latents: Tensor, most: float, seed: int) -> Tensor:
    """Latents (N, C, h, w) with noise on them, of a deviation from 0 to `most` for each picture."""
    generator = torch.Generator().manual_seed(seed)
    deviations = most * torch.rand(len(latents), 1, 1, 1, generator=generator)
    return latents + (deviations * torch.randn(latents.shape, generator=generator)).to(latents.device)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor, batch: int = 32) -> Tensor:
    """Latents (N, C, h, w), the posterior's mean, of uint8 pictures (N, H, W, 3)."""
    device = vae.device
    with autocast(device):
        means = [to_latents(vae, to_signal(part).to(device)).float().cpu() for part in pictures.split(batch)]
    return torch.cat(means)


def draw_redrawn(pictures: Tensor, redrawn: Tensor, recipe: DecoderRecipe, step: int) -> tuple[Tensor, Tensor]:
    """Crops at random places of random pictures, and their latents as the base draws them."""
    generator = torch.Generator().manual_seed(recipe.seed + step)
    side = recipe.crop // PATCH
    crops, latents = [], []
    for number, y, x in draw_places(len(redrawn), redrawn.shape[-1] - side, recipe.batch, generator):
        latents.append(redrawn[number, :, y : y + side, x : x + side])
        rows, columns = (slice(PATCH * at, PATCH * at + recipe.crop) for at in (y, x))
        crops.append(pictures[number, rows, columns])
    return torch.stack(crops), torch.stack(latents).float()


def train_decoder(
    vae: AutoencoderKL, pictures: Tensor, redrawn: Tensor, checkpoint: Path, budget: Budget, recipe: DecoderRecipe
) -> None:
    """Train the decoder on uint8 pictures (N, H, W, 3), continuing from `checkpoint` if it exists.

    Every other step it sees the pictures' latents, more or less noisy; and else those of the first of the pictures as
    the base redraws them (`redrawn`). Their patches do not quite fit together, and outlines are dented: the decoder
    learns to leave no seams and to smooth dents.
    """
    vae.encoder.requires_grad_(False)
    assert vae.quant_conv is not None and vae.post_quant_conv is not None
    vae.quant_conv.requires_grad_(False)
    decoder = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]

    def loss_of(step: int, spent: float) -> Tensor:
        if step % 2:
            crops, latents = draw_redrawn(pictures, redrawn, recipe, step)
            with autocast(vae.device):
                restored = to_restored(vae, latents.to(vae.device)).float()
            # an absolute error alone: of two places where an outline may be, it takes one, not the blur between
            return F.l1_loss(restored, to_signal(crops).to(vae.device))
        signal = to_signal(draw_batch(pictures, recipe, step, spent)).to(vae.device)
        with autocast(vae.device):
            latents = disturbed(to_latents(vae, signal), recipe.latent_noise, recipe.seed + step)
            restored = to_restored(vae, latents).float()
        return F.l1_loss(restored, signal) + F.mse_loss(restored, signal)

    Training("decoder", {"vae": vae}, decoder, checkpoint, recipe.learning_rate, recipe.batch).run(budget, loss_of)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """uint8 pictures (N, H, W, 3) through the autoencoder and back, in float32."""
    signals = [to_signal(part).to(vae.device) for part in pictures.split(16)]
    restored = [to_restored(vae, to_latents(vae, signal)) for signal in signals]
    levels = (torch.cat(restored).cpu().clamp(-1, 1) + 1) * 127.5
    return levels.round().byte().permute(0, 2, 3, 1)


def measure(vae: AutoencoderKL, pictures: Tensor) -> float:
    """PSNR in dB of uint8 pictures (N, H, W, 3) after the round trip: the mean over pictures."""
    error = (reconstruct(vae, pictures).float() - pictures.float()).pow(2).mean((1, 2, 3))
    return (10 * torch.log10(255**2 / error)).mean().item()
