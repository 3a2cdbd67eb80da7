"""Decoding when memory runs out: the denoising is not repeated."""

import warnings

import pytest
import torch
from conftest import PIPES, distance, tiny_pipe

from hra_diffusion.errors import Note
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import GenerationError, generate_batch

REQUESTS = [Request("a dog", seed) for seed in range(4)]
FEW = Settings(steps=3)


def limit_memory(pipe, values):
    """Let the decoder run out of memory for more latent values than these; returns the denoiser's calls."""
    calls = []
    decoder = pipe.vae.decoder.forward

    def forward(latents, *args):
        if latents.numel() > values:
            raise torch.OutOfMemoryError("out of memory")
        return decoder(latents, *args)

    pipe.vae.decoder.forward = forward
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("kind", PIPES)
def test_the_decoded_batch_shrinks_and_denoising_is_done_once(kind):
    expected = generate_batch(PIPES[kind](), REQUESTS, FEW)
    limited = PIPES[kind]()
    calls = limit_memory(limited, 4 * 8 * 8)
    images = generate_batch(limited, REQUESTS, FEW)
    assert len(calls) == 3
    assert all(distance(image, other) < 0.5 for image, other in zip(images, expected, strict=True))


def test_one_large_image_is_decoded_in_tiles():
    large, limited = Settings(steps=3, width=32, height=32), tiny_pipe()
    expected = generate_batch(tiny_pipe(), REQUESTS[:2], large)
    calls = limit_memory(limited, 4 * 8 * 8)
    with pytest.warns(Note, match="decoded in tiles"):
        images = generate_batch(limited, REQUESTS[:2], large)
    assert len(calls) == 3 and not limited.vae.use_tiling
    assert all(distance(image, other) < 30 for image, other in zip(images, expected, strict=True))


def test_without_memory_for_a_single_tile_the_error_is_raised():
    limited = tiny_pipe()
    limit_memory(limited, 0)
    with warnings.catch_warnings(action="error", category=Note), pytest.raises(torch.OutOfMemoryError):
        generate_batch(limited, REQUESTS[:1], FEW)
    assert not limited.vae.use_tiling


def test_a_nan_image_is_named_when_the_batch_shrank():
    limited, decoded = tiny_pipe(), []
    limit_memory(limited, 2 * 4 * 8 * 8)

    def nan_in_the_last(module, args, output):
        decoded.append(len(output))
        if len(decoded) == 2:
            output[1] = float("nan")

    limited.vae.decoder.conv_out.register_forward_hook(nan_in_the_last)
    with pytest.raises(GenerationError, match="seed 3 came out as NaN"):
        generate_batch(limited, REQUESTS, FEW)
    assert decoded == [2, 2]


def test_a_safety_checker_of_the_pipeline_still_sees_the_images():
    checked = tiny_pipe()
    checked.run_safety_checker = lambda image, device, dtype: (torch.zeros_like(image), [True] * len(image))
    assert generate_batch(checked, REQUESTS[:1], FEW)[0].getextrema() == ((0, 0),) * 3
