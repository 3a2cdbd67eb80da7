"""The encoder: principal components of 8×8 patches, written into the weights of an AutoencoderKL.

Principal components are the optimal linear code of patches and known in closed form: seconds instead of hours of
training. The encoder's nonlinearities are neutralised: residual branches are off (their last convolution is zero),
strided convolutions rearrange pixels into channels, large constants beside the signal fix the variance that the last
norm divides by, and a bias moves the signal into the linear range of the last SiLU.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # processes that render import this module, too, and not diffusers
    from diffusers import AutoencoderKL
    from diffusers.models.resnet import ResnetBlock2D

PATCH = 8
"""Side of a patch in pixels; each patch becomes one latent vector."""

CONSTANT = 64.0
"""Value of the constant channels, in standard deviations of the signal: they dominate the norm's variance."""

SILU_BIAS = 12.0
"""Bias before SiLU, which is practically linear above 7."""

GROUP_CHANNELS = 12
"""Channels per group of the last norm: 96 channels in 8 groups."""

LOG_VARIANCE = -9.0
"""Log variance of the posterior, whose noise is negligible."""


@dataclass(frozen=True)
class PatchCode:
    """Linear code of patches in [−1, 1], flattened as (row, column, RGB): ``latent = (patch − mean) @ weights.T``."""

    mean: Tensor
    weights: Tensor


def to_patches(images: Tensor) -> Tensor:
    """Split uint8 images (N, H, W, 3) into patches (N·H/8·W/8, 192) in [−1, 1], flattened as (row, column, RGB)."""
    count, height, width, _ = images.shape
    grid = images.view(count, height // PATCH, PATCH, width // PATCH, PATCH, 3).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(-1, 3 * PATCH**2).float() / 127.5 - 1


def fit_patch_code(images: Tensor, channels: int) -> PatchCode:
    """Fit the first ``channels`` principal components of the images' patches.

    The standard deviation of each component is replaced by its square root, and all are scaled to a mean square of 1.
    Coarse components keep a larger variance, so noise removes fine ones first and a diffusion model generates from
    coarse to fine.
    """
    patches = to_patches(images)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T.double()))
    deviations = values.flip(0)[:channels].sqrt()
    target_deviations = deviations.sqrt() / deviations.mean().sqrt()
    weights = (target_deviations / deviations)[:, None] * vectors.flip(1)[:, :channels].T
    return PatchCode(mean, weights.float())


@torch.no_grad()
def set_encoder_weights(vae: "AutoencoderKL", code: PatchCode) -> None:
    """Set the encoder's weights to compute ``code`` (with a relative error of about 0.001)."""
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D

    encoder = vae.encoder
    for parameter in encoder.parameters():
        parameter.zero_()
    channels = len(code.weights)
    set_kernel_centre(encoder.conv_in, torch.eye(3))
    width = 3
    blocks = [module for module in encoder.down_blocks.modules() if isinstance(module, ResnetBlock2D)]
    sampling = [module.conv for module in encoder.modules() if isinstance(module, Downsample2D)]
    strided = [convolution for convolution in sampling if isinstance(convolution, nn.Conv2d)]
    for block, convolution in zip(blocks, strided[:2], strict=False):
        pass_through(block, width)
        unfold(convolution, width)
        width *= 4
    pass_through(blocks[2], width)
    project(strided[2], code)
    read_out(encoder.conv_norm_out, encoder.conv_out, channels)
    assert vae.quant_conv is not None and vae.quant_conv.bias is not None
    vae.quant_conv.weight.copy_(torch.eye(2 * channels)[:, :, None, None])
    vae.quant_conv.bias.zero_()


def set_kernel_centre(convolution: nn.Conv2d, matrix: Tensor) -> None:
    """Set the centre of a convolution's kernel to ``matrix`` (out, in)."""
    middle = convolution.kernel_size[0] // 2
    convolution.weight[: matrix.shape[0], : matrix.shape[1], middle, middle] = matrix


def pass_through(block: "ResnetBlock2D", width: int) -> None:
    """Make a residual block, whose branch is zero, pass its first ``width`` channels."""
    if block.conv_shortcut is not None:
        set_kernel_centre(block.conv_shortcut, torch.eye(width))


def unfold(convolution: nn.Conv2d, width: int) -> None:
    """Make a stride-2 convolution rearrange 2×2 pixels of ``width`` channels into 4 · ``width`` channels."""
    for row in range(2):
        for column in range(2):
            first = (2 * row + column) * width
            convolution.weight[first : first + width, :width, row, column] = torch.eye(width)


def project(convolution: nn.Conv2d, code: PatchCode) -> None:
    """Make the last stride-2 convolution apply the code, with its channels arranged for ``read_out``.

    Each norm group holds two signals, their negatives, and constants of both signs, so that its mean is always 0.
    """
    assert convolution.bias is not None
    channels = len(code.weights)
    # pixel (row, column) is (4·r2 + 2·r1 + r0, 4·c2 + 2·c1 + c0); two unfoldings made channels of all but r2 and c2
    split = code.weights.view(channels, 2, 2, 2, 2, 2, 2, 3)
    kernels = split.permute(0, 2, 5, 3, 6, 7, 1, 4).reshape(channels, -1, 2, 2)
    offsets = -code.weights @ code.mean
    for channel, sign, index in signal_channels(channels):
        convolution.weight[index, : kernels.shape[1], :2, :2] = sign * kernels[channel]
        convolution.bias[index] = sign * offsets[channel]
    constants = convolution.bias.view(-1, GROUP_CHANNELS)[:, 4:]
    constants[:, 0::2], constants[:, 1::2] = CONSTANT, -CONSTANT


def signal_channels(channels: int) -> list[tuple[int, int, int]]:
    """Return (channel of the code, sign, channel of the network) of each signal."""
    return [
        (channel, sign, channel // 2 * GROUP_CHANNELS + channel % 2 + offset)
        for channel in range(channels)
        for sign, offset in ((1, 0), (-1, 2))
    ]


def read_out(norm: nn.GroupNorm, convolution: nn.Conv2d, channels: int) -> None:
    """Undo the norm's scaling, and the bias by taking half the difference of each signal and its negative."""
    assert convolution.bias is not None
    norm.bias.fill_(SILU_BIAS)
    norm.weight.fill_(CONSTANT * ((GROUP_CHANNELS - 4) / GROUP_CHANNELS) ** 0.5)
    # the constants are not needed after the norm
    norm.weight.view(-1, GROUP_CHANNELS)[:, 4:] = 0
    for channel, sign, index in signal_channels(channels):
        convolution.weight[channel, index, 1, 1] = sign / 2
    convolution.bias[channels:] = LOG_VARIANCE
