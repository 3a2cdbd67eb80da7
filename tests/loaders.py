"""Other programs' loaders, unpatched: (kind of pipeline, exported file) -> a pipeline with the adapter on it."""

import functools

import pytest
import torch
from conftest import PIPES, everything, stir
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from flow_pipes import tiny_flux2_pipe, tiny_sd3_pipe
from peft import PeftModel
from torch import nn

from hra_diffusion.adapters import attachment, registry
from hra_diffusion.models import families

EXACT = 1e-4
FORMS = ("lora", "hra", "oft", "shoft")
"""Methods that are exported in different forms: as LoRA everywhere, or to PEFT as HRA, OFT and DoRA."""
BOTH = ("lora", "shoft")
"""A method without and one with magnitudes."""


TRANSFORMERS = {"sd3": functools.partial(tiny_sd3_pipe, t5=False), "flux2": tiny_flux2_pipe}
"""A tiny pipeline of every family whose denoiser is a transformer."""


def make(kind):
    return (PIPES | TRANSFORMERS)[kind]()


def outputs(pipe) -> torch.Tensor:
    """The outputs of a pipeline's text encoders and denoiser for fixed noise, as one vector."""
    if families.of(pipe).name != "flux2":
        return everything(pipe)
    model, generator = pipe.transformer, torch.Generator().manual_seed(1)
    sizes = {"hidden_states": model.config.in_channels, "encoder_hidden_states": model.config.joint_attention_dim}
    tokens = {name: torch.randn(2, 6, size, generator=generator) for name, size in sizes.items()}
    ids = torch.randint(4, (2, 6, 4), generator=generator)
    with torch.no_grad():
        return model(**tokens, timestep=torch.full((2,), 0.3), img_ids=ids, txt_ids=ids).sample.flatten()


def each_method(methods=None, kinds=PIPES):
    """Parametrise a test with every method on the first kind of pipeline, and with BOTH on the others."""
    first, *others = kinds
    methods = methods or registry.method_names()
    cases = [(first, method) for method in methods]
    cases += [(kind, method) for kind in others for method in BOTH if method in methods]
    return pytest.mark.parametrize(("kind", "method"), cases)


def each_form_by_format(*formats):
    """Parametrise a test with each form and format, and with every other method and one format."""
    cases = [(method, format) for method in FORMS for format in formats]
    cases += [(method, formats[0]) for method in registry.method_names() if method not in FORMS]
    return pytest.mark.parametrize(("method", "format"), cases)


def adapted(kind, method, targets="attention", options=None):
    """A tiny pipeline with a random adapter on all its components that files of LoRA name, and its outputs."""
    pipe = make(kind)
    for component, _ in families.of(pipe).kohya_prefixes:
        model = getattr(pipe, component)
        where = targets if component == families.of(pipe).denoiser else "attention"
        attachment.attach(model, method, {"rank": 4} | (options or {}), name="Rex", targets=where)
        stir(attachment.adapter_parameters(model, "Rex").values())
    return pipe, outputs(pipe)


def with_diffusers(kind, path):
    pipe = make(kind)
    pipe.load_lora_weights(str(path))
    return pipe


def with_peft(kind, path):
    pipe = make(kind)
    for component, _ in families.of(pipe).kohya_prefixes:
        model = PeftModel.from_pretrained(getattr(pipe, component), path / component)
        pipe.register_modules(**{component: model.get_base_model()})
    return pipe


class OlderTransformers(nn.Module):
    """A text encoder nested as in transformers 4, because LyCORIS looks for its layers there."""

    def __init__(self, encoder):
        super().__init__()
        self.text_model = encoder


def with_lycoris(kind, path):
    kohya = pytest.importorskip("lycoris.kohya", reason="needs lycoris-lora")
    pipe = PIPES[kind]()
    # its default preset counts the layers of diffusers' time embedding twice, and stops
    kohya.LycorisNetworkKohya.apply_preset({"unet_target_name": []})
    network, weights = kohya.create_network_from_weights(
        1.0, str(path), None, OlderTransformers(pipe.text_encoder), pipe.unet
    )
    network.weights_sd = weights
    network.apply_to(None, None, apply_text_encoder=True, apply_unet=True)
    pipe.keep = network
    return pipe


def with_from_pretrained(kind, path):
    missing = {name: None for name, part in make(kind).components.items() if part is None}
    return DiffusionPipeline.from_pretrained(path, **missing)


def with_from_single_file(kind, path):
    like = PIPES[kind]()
    folder = path.parent / "configuration"
    like.save_pretrained(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    reader = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    return reader.from_single_file(str(path), config=str(folder), local_files_only=True)


LOADERS = {
    ("kohya", "diffusers", "LoRA"): with_diffusers,
    ("kohya", "diffusers", "DoRA"): with_diffusers,
    ("kohya", "LyCORIS", "LoRA"): with_lycoris,
    ("kohya", "LyCORIS", "DoRA"): with_lycoris,
    ("diffusers", "diffusers", "LoRA"): with_diffusers,
    ("diffusers", "diffusers", "DoRA"): with_diffusers,
    ("peft", "PEFT", "LoRA"): with_peft,
    ("peft", "PEFT", "DoRA"): with_peft,
    ("peft", "PEFT", "HRA"): with_peft,
    ("peft", "PEFT", "OFT"): with_peft,
    ("merged", "diffusers", "folder"): with_from_pretrained,
    ("merged", "diffusers", "single file"): with_from_single_file,
}
"""By format, program and form, as in the compatibility table."""
