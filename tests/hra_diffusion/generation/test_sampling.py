"""Pictures: same seed, same picture; together or one by one; settings inside."""

import pytest
import torch
from conftest import PIPES, distance, stir, tiny_pipe
from PIL import Image

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment
from hra_diffusion.comparison.compare import Variant, compare
from hra_diffusion.comparison.statistics import difference_from_base
from hra_diffusion.comparison.storage import save_comparison
from hra_diffusion.errors import UserError
from hra_diffusion.generation.png import read_png, save_png
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import GenerationError, generate, generate_batch
from hra_diffusion.generation.schedulers import SCHEDULERS
from hra_diffusion.models import noise

FEW = Settings(steps=4)


@pytest.fixture(scope="module")
def pipe():
    """A tiny pipeline with two adapters on it: "a" on UNet and text encoder, "b" on the UNet alone."""
    pipe = tiny_pipe()
    for name, parts, method in (("a", ("unet", "text_encoder"), "hra"), ("b", ("unet",), "lora")):
        for part in parts:
            model = getattr(pipe, part)
            attachment.attach(model, method, {"rank": 4}, name=name)
            stir(attachment.adapter_parameters(model, name).values(), by=1.0)
    return pipe


def test_the_seed_decides_the_picture(pipe):
    first, second = (generate(pipe, "a dog", {"a": 1.0}, seed=3, settings=FEW)[0] for _ in range(2))
    assert distance(first, second) == 0
    assert distance(first, generate(pipe, "a dog", {"a": 1.0}, seed=4, settings=FEW)[0]) > 1


def test_count_goes_on_from_the_seed(pipe):
    _, second = generate(pipe, "a dog", {}, seed=3, count=2, settings=FEW)
    assert distance(second, generate(pipe, "a dog", {}, seed=4, settings=FEW)[0]) < 0.5


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_pictures_drawn_together_equal_those_drawn_alone(pipe, scheduler):
    """Different adapters, prompts and seeds in one denoising batch, stochastic schedulers too."""
    requests = [
        Request("a dog", 1),
        Request("a cat in the snow", 2, (("a", 1.0),), "blurry"),
        Request("a dog", 1, (("b", 0.7),)),
        Request("a dog", 1, (("a", 0.5), ("b", 1.0))),
    ]
    settings = Settings(steps=4, scheduler=scheduler)
    together = generate_batch(pipe, requests, settings)
    for request, picture in zip(requests, together, strict=True):
        assert distance(picture, generate_batch(pipe, [request], settings)[0]) < 0.5
    assert distance(together[0], together[2]) > 1, "the adapter does something"


def test_a_comparison_equals_generate(pipe, tmp_path):
    columns = [Variant("base", {}, "dog"), Variant("A", {"a": 1.0}, "sks dog"), Variant("B", {"b": 0.5}, "qwe dog")]
    prompts, seeds = ["a {subject} in the snow", "a {subject}"], [5, 6]
    result = compare(pipe, columns, prompts, seeds, FEW, photos=[Image.new("RGB", (16, 16), "red")], batch_size=5)
    assert len(result.samples) == 12
    for p, prompt in enumerate(prompts):
        for s, seed in enumerate(seeds):
            for cell, column in zip(result.row(p, s), columns, strict=True):
                asked = prompt.replace("{subject}", column.subject)
                assert cell.request.prompt == asked
                alone = generate(pipe, asked, column.adapters, seed, settings=FEW)[0]
                assert distance(cell.image, alone) < 0.5
    grid = save_comparison(result, tmp_path)
    assert grid == tmp_path / "grid.png" and len(list((tmp_path / "pictures").iterdir())) == 12
    drifts = difference_from_base(result)
    assert drifts[0] == 0 and drifts[1] > 0


def test_settings_travel_inside_the_png(pipe, tmp_path):
    image = generate(pipe, "ein Hündchen", {"a": 0.5}, seed=9, settings=FEW, negative_prompt="blurry")[0]
    path = save_png(image, tmp_path / "p.png")
    made = read_png(path)
    assert made == {
        "base": "tiny",
        "dtype": "float32",
        "prompt": "ein Hündchen",
        "seed": 9,
        "adapters": {"a": 0.5},
        "negative_prompt": "blurry",
        "steps": 4,
        "guidance_scale": 7.5,
        "scheduler": "dpm++",
        "width": 16,
        "height": 16,
    }
    with Image.open(path) as stored:
        assert "Seed: 9" in stored.info["parameters"], "other tools read this"
    again = generate(pipe, made["prompt"], made["adapters"], made["seed"], settings=FEW, negative_prompt="blurry")[0]
    assert distance(again, image) == 0


def test_generate_uses_the_active_adapters_unless_told(pipe):
    pipeline.activate(pipe, {"a": 1.0})
    active, told, base = (generate(pipe, "a dog", mix, settings=FEW)[0] for mix in (None, {"a": 1.0}, {}))
    assert distance(active, told) == 0 and distance(active, base) > 1
    assert active.info["hra_diffusion"]["adapters"] == {"a": 1.0}


def test_a_merged_pipeline_is_not_drawn_with_as_if_it_were_not():
    merged = tiny_pipe()
    attachment.attach(merged.unet, "lora", {"rank": 2}, name="a")
    pipeline.merge(merged)
    with pytest.raises(UserError, match="unmerge"):
        generate(merged, "a dog", {}, settings=FEW)


def test_a_foreign_png_has_no_settings(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="no settings"):
        read_png(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(scheduler="magic"), "unknown scheduler 'magic'; use one of dpm"),
        (Settings(width=17), "multiples of 4"),
        (Settings(height=100_000), "up to 4096"),
        (Settings(steps=0), "steps must be from 1 to 1000"),
    ],
)
def test_settings_that_cannot_be_are_refused(pipe, settings, message):
    with pytest.raises(UserError, match=message):
        generate(pipe, "a dog", settings=settings)


def test_an_adapter_must_be_loaded(pipe):
    with pytest.raises(UserError, match="no adapter named 'c' is loaded; loaded: a, b"):
        generate(pipe, "a dog", {"c": 1.0})


def test_drawing_leaves_the_pipeline_as_it_was(pipe):
    scheduler, mix = pipe.scheduler, attachment.state_of(pipe.unet).active
    pipeline.activate(pipe, {"b": 0.3})
    generate(pipe, "a dog", {"a": 1.0}, settings=FEW)
    assert pipe.scheduler is scheduler and attachment.state_of(pipe.unet).active == (("b", 0.3),)
    pipeline.activate(pipe, dict(mix))


def test_a_pipeline_call_of_the_persons_own_uses_the_active_adapters(pipe):
    import torch

    def own_call():
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        return pipe("a dog", latents=latents, num_inference_steps=3).images[0]

    pipeline.activate(pipe, {})
    base = own_call()
    pipeline.activate(pipe, {"a": 1.0})
    assert distance(own_call(), base) > 1


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_picture_that_comes_out_as_nan_is_an_error_with_the_remedy(family):
    """In half precision values overflow in the autoencoder: a black picture otherwise."""
    broken = PIPES[family]()
    with torch.no_grad():
        broken.vae.decoder.conv_out.bias.fill_(float("nan"))
    for dtype, remedy in (
        (torch.float32, "generate without adapters"),
        (torch.float16, "use --dtype float32 or bfloat16"),
    ):
        with pytest.raises(GenerationError, match=f"'a dog' with seed 3 came out as NaN.*{remedy}"):
            generate(broken.to(dtype), "a dog", {}, seed=3, settings=FEW)


def test_one_picture_of_a_batch_that_is_nan_is_named(pipe):
    class Numbers(torch.nn.Module):
        """The last layer of the decoder, whose second picture is no number."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            x = self.inner(x)
            x[1, 0, 0, 0] = float("nan")
            return x

    broken = tiny_pipe()
    broken.vae.decoder.conv_out = Numbers(broken.vae.decoder.conv_out)
    with pytest.raises(GenerationError, match="'a cat' with seed 2"):
        generate_batch(broken, [Request("a dog", 1), Request("a cat", 2)], FEW)


def test_pictures_are_those_of_the_pipeline_itself():
    """Bit for bit what its own conversion to pictures gives."""
    own = tiny_pipe()
    picture = generate(own, "a dog", {}, seed=3, settings=Settings(steps=2, scheduler="ddim", guidance_scale=7.5))[0]
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    own.scheduler = noise.of(own.scheduler).scheduler("DDIMScheduler", clip_sample=False)
    wanted = own("a dog", latents=latents, num_inference_steps=2, guidance_scale=7.5, height=16, width=16).images[0]
    assert distance(picture, wanted) == 0
