"""The encoder of the toybox autoencoder: principal components of 8×8 patches, as the weights of an AutoencoderKL.

They are the best linear code of a patch and known in closed form: seconds of work in place of hours of training. They
pass through the network unchanged because every residual branch is switched off (its last convolution is zero), strided
convolutions lay pixels out as channels, and the one norm and SiLU that remain are made linear: beside the signal run
constants so loud that they alone set the norm's deviation, and a bias lifts the signal to where SiLU is straight.
"""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

PATCH = 8
"""Side of a patch in pixels; one patch becomes one place of the latents."""

LOUD = 64.0
"""The constant channels' value, in deviations of the signal: the norm sees the picture as a ripple on it."""

LIFT = 12.0
"""Where the signal enters SiLU, which is as good as straight from 7 on."""

GROUP = 12
"""Channels in a norm's group at the encoder's end: 96 channels in 8 groups."""

LOG_VARIANCE = -9.0
"""What the encoder says of its own doubt: next to none."""


@dataclass(frozen=True)
class PatchCode:
    """A linear code of patches in −1…1, flattened as (row, column, RGB): `latent = (patch − mean) @ weights.T`."""

    mean: Tensor
    weights: Tensor


def to_patches(pictures: Tensor) -> Tensor:
    """uint8 pictures (N, H, W, 3) as patches in −1…1: (N · H/8 · W/8, 192), each flattened as (row, column, RGB)."""
    count, height, width, _ = pictures.shape
    grid = pictures.view(count, height // PATCH, PATCH, width // PATCH, PATCH, 3).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(-1, 3 * PATCH**2).float() / 127.5 - 1


def fit_patch_code(pictures: Tensor, channels: int) -> PatchCode:
    """The first `channels` principal components of the pictures' patches.

    Component c is scaled to the square root of its own deviation (and all to a mean square of 1): loud components stay
    louder, so noise drowns the fine ones first and a diffusion model draws from coarse to fine.
    """
    patches = to_patches(pictures)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T.double()))
    deviations = values.flip(0)[:channels].sqrt()
    loudness = deviations.sqrt() / deviations.mean().sqrt()
    weights = (loudness / deviations)[:, None] * vectors.flip(1)[:, :channels].T
    return PatchCode(mean, weights.float())


@torch.no_grad()
def set_encoder_weights(vae: AutoencoderKL, code: PatchCode) -> None:
    """Set the encoder's weights so that its latents are those of `code` (to about one part in a thousand)."""
    encoder = vae.encoder
    for parameter in encoder.parameters():
        parameter.zero_()
    channels = len(code.weights)
    set_centre(encoder.conv_in, torch.eye(3))
    wide = 3
    blocks = [module for module in encoder.down_blocks.modules() if isinstance(module, ResnetBlock2D)]
    sampling = [module.conv for module in encoder.modules() if isinstance(module, Downsample2D)]
    strided = [convolution for convolution in sampling if isinstance(convolution, nn.Conv2d)]
    for block, convolution in zip(blocks, strided[:2], strict=False):
        pass_through(block, wide)
        unfold(convolution, wide)
        wide *= 4
    pass_through(blocks[2], wide)
    project(strided[2], code)
    read_out(encoder.conv_norm_out, encoder.conv_out, channels)
    assert vae.quant_conv is not None and vae.quant_conv.bias is not None
    vae.quant_conv.weight.copy_(torch.eye(2 * channels)[:, :, None, None])
    vae.quant_conv.bias.zero_()


def set_centre(convolution: nn.Conv2d, matrix: Tensor) -> None:
    """Make a convolution apply `matrix` (out, in) at its centre, and nothing elsewhere."""
    middle = convolution.kernel_size[0] // 2
    convolution.weight[: matrix.shape[0], : matrix.shape[1], middle, middle] = matrix


def pass_through(block: ResnetBlock2D, wide: int) -> None:
    """Let the first `wide` channels through a residual block whose own branch is switched off."""
    if block.conv_shortcut is not None:
        set_centre(block.conv_shortcut, torch.eye(wide))


def unfold(convolution: nn.Conv2d, wide: int) -> None:
    """Make a stride-2 convolution lay the 2×2 pixels of `wide` channels side by side as 4 · `wide` channels."""
    for row in range(2):
        for column in range(2):
            first = (2 * row + column) * wide
            convolution.weight[first : first + wide, :wide, row, column] = torch.eye(wide)


def project(convolution: nn.Conv2d, code: PatchCode) -> None:
    """Make the last stride-2 convolution apply the code, and lay out each pair of its channels for `read_out`.

    A group of channels holds two signals, their negatives and constants of either sign: its mean is 0 everywhere.
    """
    assert convolution.bias is not None
    channels = len(code.weights)
    # pixel (row, column) is (4·r2 + 2·r1 + r0, 4·c2 + 2·c1 + c0); two unfoldings made channels of all but r2 and c2
    split = code.weights.view(channels, 2, 2, 2, 2, 2, 2, 3)
    kernels = split.permute(0, 2, 5, 3, 6, 7, 1, 4).reshape(channels, -1, 2, 2)
    offsets = -code.weights @ code.mean
    for channel, sign, place in signal_places(channels):
        convolution.weight[place, : kernels.shape[1], :2, :2] = sign * kernels[channel]
        convolution.bias[place] = sign * offsets[channel]
    constants = convolution.bias.view(-1, GROUP)[:, 4:]
    constants[:, 0::2], constants[:, 1::2] = LOUD, -LOUD


def signal_places(channels: int) -> list[tuple[int, int, int]]:
    """Where each signal runs: (channel of the code, sign, channel of the network)."""
    return [
        (channel, sign, channel // 2 * GROUP + channel % 2 + offset)
        for channel in range(channels)
        for sign, offset in ((1, 0), (-1, 2))
    ]


def read_out(norm: nn.GroupNorm, convolution: nn.Conv2d, channels: int) -> None:
    """Undo the norm's division and, as half the difference of a signal and its negative, the lift over SiLU."""
    assert convolution.bias is not None
    norm.bias.fill_(LIFT)
    norm.weight.fill_(LOUD * ((GROUP - 4) / GROUP) ** 0.5)
    # the constants have done their work
    norm.weight.view(-1, GROUP)[:, 4:] = 0
    for channel, sign, place in signal_places(channels):
        convolution.weight[channel, place, 1, 1] = sign / 2
    convolution.bias[channels:] = LOG_VARIANCE
