"""Tiny real models: the classes of the real thing with few channels. No mocks."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "16000")  # as hra_diffusion.threads sets it

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    Flux2Transformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hra_diffusion.adapters import attachment
from hra_diffusion.models import families
from training import samples
from training.data import class_images
from training.runs.events import Step

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def tiny_unet(cross_attention_dim: int = 32) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def tiny_sd3_transformer() -> SD3Transformer2DModel:
    """With dual attention in the first of two blocks, as in Stable Diffusion 3.5 medium."""
    return SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=64, caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=32,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip


def tiny_flux2_transformer() -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip


def tiny_tokenizer() -> CLIPTokenizer:
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=24)


def tiny_text_config(**more) -> CLIPTextConfig:
    sizes = {"vocab_size": 514, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 24}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    return CLIPTextConfig(**(sizes | layers | tokens | more))


def tiny_text_encoder(**more) -> CLIPTextModel:
    return CLIPTextModel(tiny_text_config(**more))


def tiny_clip(folder: Path) -> Path:
    """A tiny CLIP model with its processor, saved in a folder."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    text = tiny_text_config(projection_dim=16)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessorPil(**size), tiny_tokenizer()).save_pretrained(folder)
    return folder


def random_images(count: int) -> list[Image.Image]:
    """Images of noise, the same on every call."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, 40, 32, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(image.numpy()) for image in pixels]


def tiny_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    )


def tiny_pipe(prediction_type: str = "epsilon", cross_attention_dim: int = 32) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=16,
        ),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        unet=tiny_unet(cross_attention_dim),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.base_name = "tiny"
    return pipe


def tiny_sd2_pipe() -> StableDiffusionPipeline:
    """As version 2 differs from 1: OpenCLIP's activation, linear projections, velocity."""
    pipe = tiny_pipe("v_prediction")
    pipe.register_modules(
        text_encoder=tiny_text_encoder(hidden_act="gelu").eval(),
        unet=altered(pipe.unet, use_linear_projection=True).eval(),
    )
    assert isinstance(pipe.unet.mid_block.attentions[0].proj_in, torch.nn.Linear)
    return pipe


def altered(unet: UNet2DConditionModel, **changes) -> UNet2DConditionModel:
    """A new UNet with this one's configuration, except for the changes."""
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    return UNet2DConditionModel.from_config(config | changes)


def tiny_xl_pipe() -> StableDiffusionXLPipeline:
    """A tiny Stable Diffusion XL: two text encoders, pooled text, size and crop."""
    torch.manual_seed(0)
    like = tiny_pipe()
    pipe = StableDiffusionXLPipeline(
        vae=like.vae,
        text_encoder=tiny_text_encoder(),
        text_encoder_2=CLIPTextModelWithProjection(
            tiny_text_config(hidden_size=48, hidden_act="gelu", projection_dim=40)
        ),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=8,
            layers_per_block=2,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=80,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=40 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler.from_config(like.scheduler.config),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.base_name = "tiny-xl"
    return pipe


PIPES = {"sd": tiny_pipe, "sd2": tiny_sd2_pipe, "sdxl": tiny_xl_pipe}
"""A tiny pipeline of every family."""


def everything(pipe) -> torch.Tensor:
    """The outputs of a pipeline's text encoders and denoiser for two prompts and fixed noise, as one vector."""
    family = families.of(pipe)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        text = family.embed(families.text_encoders(pipe), families.tokenize(pipe, ["a dog", "a teapot in the snow"]))
        out = family.predict(families.denoiser(pipe), noise, torch.full((2,), 10), text, 16)
    return torch.cat([part.flatten() for part in (out, *text.values())])


@pytest.fixture(scope="module", autouse=True)
def few_denoising_steps():
    """Runs spend two denoising steps on samples and class images. Modules that look at them redefine this fixture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SAMPLE_STEPS", 2)
        patch.setattr(class_images, "CLASS_IMAGE_STEPS", 2)
        yield


@pytest.fixture
def pipe() -> StableDiffusionPipeline:
    return tiny_pipe()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion folder on disk."""
    folder = tmp_path_factory.mktemp("base") / "tiny-sd"
    tiny_pipe().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sprites(tmp_path_factory) -> Path:
    """Folder with a coloured disc as the sprite of every object of toybox's world."""
    from sprites import write_sprites  # imports toybox, which few tests need

    return write_sprites(tmp_path_factory.mktemp("sprites"))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(
            "needs ../shared (the benchmark's photos, two public adapters, CLIP's vocabulary) beside the project"
        )
    return SHARED


def save_photos(folder: Path, count: int) -> Path:
    """Save ``count`` small random photos as 0.jpg, 1.jpg, … in an existing folder. Photo 1 has a sky, so that not all
    have the same background."""
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (96, 128, 3), dtype=np.uint8)
        if i == 1:
            pixels[:64] = 90, 120, 150
        Image.fromarray(pixels).resize((256, 192), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
    return folder


def stir(parameters, seed: int = 0, by: float = 0.3) -> None:
    """Add random values to parameters, so that a new adapter has an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(by * torch.randn(parameter.shape, generator=generator) * (parameter.abs().mean() + 0.1))


def pipe_with_two_adapters() -> StableDiffusionPipeline:
    """A tiny pipeline with two adapters on it: "a" on UNet and text encoder, "b" on the UNet alone."""
    pipe = tiny_pipe()
    for name, parts, method in (("a", ("unet", "text_encoder"), "hra"), ("b", ("unet",), "lora")):
        for part in parts:
            model = getattr(pipe, part)
            attachment.attach(model, method, {"rank": 4}, name=name)
            stir(attachment.adapter_parameters(model, name).values(), by=1.0)
    return pipe


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def distance(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference in grey levels (0 to 255)."""
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


def weights(path: Path) -> torch.Tensor:
    """All of an adapter file's parameters as one vector."""
    return torch.cat([value.flatten() for _, value in sorted(load_file(path).items())])


class StopAfter:
    """A listener that interrupts the run as Ctrl-C does, once a step is done."""

    def __init__(self, step):
        self.step = step

    def __call__(self, event):
        if isinstance(event, Step) and event.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)
