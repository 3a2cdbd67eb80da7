"""Image generation: same seed, same image, alone or in a batch."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import PIPES, distance, pipe_with_two_adapters, tiny_pipe

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment
from hra_diffusion.errors import UserError
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import GenerationError, generate, generate_batch
from hra_diffusion.generation.schedulers import SCHEDULERS
from hra_diffusion.models import noise

FEW = Settings(steps=4)


@pytest.fixture(scope="module")
def pipe():
    return pipe_with_two_adapters()


def test_the_seed_determines_the_image(pipe):
    first, second = (generate(pipe, "a dog", {"a": 1.0}, seed=3, settings=FEW)[0] for _ in range(2))
    assert distance(first, second) == 0
    assert distance(first, generate(pipe, "a dog", {"a": 1.0}, seed=4, settings=FEW)[0]) > 1


def test_count_increments_the_seed(pipe):
    _, second = generate(pipe, "a dog", {}, seed=3, count=2, settings=FEW)
    assert distance(second, generate(pipe, "a dog", {}, seed=4, settings=FEW)[0]) < 0.5


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_batched_images_equal_single_images(pipe, scheduler):
    """Different adapters, prompts and seeds share a batch, with stochastic schedulers, too."""
    requests = [
        Request("a dog", 1),
        Request("a cat in the snow", 2, (("a", 1.0),), "blurry"),
        Request("a dog", 1, (("b", 0.7),)),
        Request("a dog", 1, (("a", 0.5), ("b", 1.0))),
    ]
    settings = Settings(steps=4, scheduler=scheduler)
    together = generate_batch(pipe, requests, settings)
    for request, image in zip(requests, together, strict=True):
        assert distance(image, generate_batch(pipe, [request], settings)[0]) < 0.5
    assert distance(together[0], together[2]) > 1, "the adapter does something"


def test_generate_uses_the_active_adapters_by_default(pipe):
    pipeline.activate(pipe, {"a": 1.0})
    active, given, base = (generate(pipe, "a dog", adapters, settings=FEW)[0] for adapters in (None, {"a": 1.0}, {}))
    assert distance(active, given) == 0 and distance(active, base) > 1
    assert active.info["hra_diffusion"]["adapters"] == {"a": 1.0}


def test_a_merged_pipeline_is_an_error():
    merged = tiny_pipe()
    attachment.attach(merged.unet, "lora", {"rank": 2}, name="a")
    pipeline.merge(merged)
    with pytest.raises(UserError, match="unmerge"):
        generate(merged, "a dog", {}, settings=FEW)


def test_an_adapter_must_be_loaded(pipe):
    with pytest.raises(UserError, match="no adapter named 'c' is loaded; loaded: a, b"):
        generate(pipe, "a dog", {"c": 1.0})


def test_generation_restores_the_pipeline(pipe):
    scheduler, mix = pipe.scheduler, attachment.state_of(pipe.unet).active
    pipeline.activate(pipe, {"b": 0.3})
    generate(pipe, "a dog", {"a": 1.0}, settings=FEW)
    assert pipe.scheduler is scheduler and attachment.state_of(pipe.unet).active == (("b", 0.3),)
    pipeline.activate(pipe, dict(mix))


def test_a_direct_pipeline_call_uses_the_active_adapters(pipe):
    def own_call():
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        return pipe("a dog", latents=latents, num_inference_steps=3).images[0]

    pipeline.activate(pipe, {})
    base = own_call()
    pipeline.activate(pipe, {"a": 1.0})
    assert distance(own_call(), base) > 1


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_nan_image_is_an_error_with_a_remedy(family):
    """Half precision may overflow in the VAE; the image would be saved as black."""
    broken = PIPES[family]()
    with torch.no_grad():
        broken.vae.decoder.conv_out.bias.fill_(float("nan"))
    for dtype, remedy in (
        (torch.float32, "generate without adapters"),
        (torch.float16, "use --dtype float32 or bfloat16"),
    ):
        with pytest.raises(GenerationError, match=f"'a dog' with seed 3 came out as NaN.*{remedy}"):
            generate(broken.to(dtype), "a dog", {}, seed=3, settings=FEW)


def test_a_nan_image_of_a_batch_is_named(pipe):
    class NanInSecondImage(torch.nn.Module):
        """The decoder's last layer, with NaN in the second image."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            x = self.inner(x)
            x[1, 0, 0, 0] = float("nan")
            return x

    broken = tiny_pipe()
    broken.vae.decoder.conv_out = NanInSecondImage(broken.vae.decoder.conv_out)
    with pytest.raises(GenerationError, match="'a cat' with seed 2"):
        generate_batch(broken, [Request("a dog", 1), Request("a cat", 2)], FEW)


def test_images_equal_those_of_the_pipeline():
    """Bit for bit, including the conversion to PIL."""
    own = tiny_pipe()
    image = generate(own, "a dog", {}, seed=3, settings=Settings(steps=2, scheduler="ddim", guidance_scale=7.5))[0]
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    own.scheduler = noise.of(own.scheduler).scheduler("DDIMScheduler", clip_sample=False)
    expected = own("a dog", latents=latents, num_inference_steps=2, guidance_scale=7.5, height=16, width=16).images[0]
    assert distance(image, expected) == 0


def test_two_threads_can_share_a_pipeline(pipe):
    """Each image equals the one that a single thread generates, whatever the adapters, prompts and schedulers."""
    pipeline.activate(pipe, {"a": 0.3})
    sides = [
        [({"a": 1.0}, "a dog", "dpm++"), ({}, "a cat", "euler-a"), ({"a": 0.5, "b": 1.0}, "a (dog:1.4)", "ddim")] * 2,
        [({"b": 1.0}, "a teapot", "euler"), (None, "a dog in the snow", "dpm++"), ({"b": -1.0}, "", "unipc")] * 2,
    ]

    def images(side):
        return [
            generate(pipe, prompt, adapters, seed, settings=Settings(steps=3, scheduler=scheduler))[0]
            for seed, (adapters, prompt, scheduler) in enumerate(side)
        ]

    expected = [images(side) for side in sides]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(images, sides))
    finally:
        sys.setswitchinterval(interval)
    assert [[distance(*pair) for pair in zip(*side, strict=True)] for side in zip(found, expected, strict=True)] == [
        [0.0] * 6
    ] * 2
    assert pipeline.active(pipe) == {"a": 0.3}


def test_a_callback_may_generate_and_the_pipeline_can_be_copied(pipe):
    """The lock is re-entrant, and it is not on the pipeline."""
    inner = []

    def on_step(step):
        if not inner:
            inner.append(None)
            inner.extend(generate(pipe, "a cat", {}, settings=FEW))

    generate(pipe, "a dog", {}, settings=FEW, on_step=on_step)
    assert distance(inner[1], generate(pipe, "a cat", {}, settings=FEW)[0]) == 0
    plain = tiny_pipe()
    image = generate(plain, "a dog", {}, settings=FEW)[0]
    for copied in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert distance(generate(copied, "a dog", {}, settings=FEW)[0], image) == 0
