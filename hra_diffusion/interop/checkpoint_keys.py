"""The original checkpoint's layout ("model.diffusion_model.input_blocks.4.1…"): diffusers' names to its own.

Source of the names: the checkpoints of CompVis' latent-diffusion, Stability's generative-models (SDXL) and OpenCLIP, as
diffusers' ``from_single_file`` reads them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors import safe_open
from torch import Tensor

from hra_diffusion.errors import UserError
from hra_diffusion.models import families
from hra_diffusion.models.families.architectures import PREDICTION_KEY, SD1
from hra_diffusion.models.noise import NoiseProcess

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2",
}  # fmt: skip
_VAE_MIDDLE = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}
_VAE_PARTS = {
    "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "group_norm": "norm", "to_q": "q", "to_k": "k",
    "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
_OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
SD2_LAYER = r"cond_stage_model\.model\.transformer\.resblocks\.(\d+)\."
"""The start of a key of one text layer of Stable Diffusion 2, with its number."""


def unet_name(path: str, config: Mapping[str, Any]) -> str:
    """A UNet's layer or parameter as the original calls it: "down_blocks.1.attentions.0.…" is "input_blocks.4.1.…".

    Raises UserError for a layer that the original has no place for.
    """
    for own, original in _UNET_ENDS.items():
        if path == own or path.startswith(f"{own}."):
            return original + path.removeprefix(own)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", path):
        kind, number, rest = found.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{_inside(kind, rest)}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", path):
        way, block, kind, number, rest = found.groups()
        return _block_name(way, int(block), kind, int(number), rest, config)
    raise UserError(
        f"the original checkpoint layout has no place for the UNet's {path}; save a diffusers folder instead"
    )


def _block_name(way: str, block: int, kind: str, number: int, rest: str, config: Mapping[str, Any]) -> str:
    layers = config["layers_per_block"]
    if way == "down":
        place = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else number)
        side = {"resnets": "0", "attentions": "1", "downsamplers": "0"}[kind]
        return f"input_blocks.{place}.{side}.{_inside(kind, rest)}"
    place = block * (layers + 1) + (layers if kind == "upsamplers" else number)
    attends = "Attn" in config["up_block_types"][block]
    side = {"resnets": "0", "attentions": "1", "upsamplers": "2" if attends else "1"}[kind]
    return f"output_blocks.{place}.{side}.{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    """The name within a block: residual blocks have other names there, attention the same."""
    if kind == "downsamplers":
        return rest.replace("conv", "op", 1)
    part, dot, parameter = rest.partition(".")
    return _RESNET[part] + dot + parameter if kind == "resnets" else rest


def vae_name(key: str, levels: int) -> str:
    """A parameter of the autoencoder as the original calls it; its decoder counts levels from the other end."""
    key = key.replace(".downsamplers.0.conv", ".downsample.conv").replace(".upsamplers.0.conv", ".upsample.conv")
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d+)", r"down.\1", key)
    key = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", key)
    key = re.sub(r"(up\.\d+)\.resnets\.(\d+)", r"\1.block.\2", key)
    key = re.sub(r"mid_block\.(\w+\.\d)", lambda found: f"mid.{_VAE_MIDDLE[found[1]]}", key)
    for own, original in _VAE_PARTS.items():
        key = key.replace(f".{own}.", f".{original}.")
    return key


def checkpoint(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """All weights of a pipeline under the original's keys. Raises UserError for a base built otherwise."""
    unet: Any = pipe.unet
    vae: Any = pipe.vae
    levels = len(vae.config.block_out_channels)
    tensors = {f"model.diffusion_model.{unet_name(k, unet.config)}": t for k, t in unet.state_dict().items()}
    for key, tensor in vae.state_dict().items():
        linear = ".mid_block.attentions." in key and tensor.ndim == 2  # the original's are convolutions of one pixel
        tensors[f"first_stage_model.{vae_name(key, levels)}"] = tensor[..., None, None] if linear else tensor
    for prefix, encoder, open_clip in _text_places(pipe):
        state = {key.removeprefix("text_model."): tensor for key, tensor in encoder.state_dict().items()}
        own = {prefix + key: t for key, t in (_open_clip(state) if open_clip else _clip(state)).items()}
        tensors |= own | (_left_out(pipe, prefix, own) if open_clip else {})
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def noise_marks(process: NoiseProcess) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata that state a checkpoint's noise process, as single_file and other programs read them.

    The tensors are empty; their keys count. Raises UserError for a noise process that the marks can't state.
    """
    released = DDIMScheduler(**SD1.predicting(process.prediction_type, process.zero_snr).scheduler[1])
    usual = len(process.betas) == len(released.betas) and torch.allclose(
        process.alphas_cumprod, released.alphas_cumprod, atol=1e-4
    )
    if not usual or process.prediction_type == "sample":
        raise UserError(
            "the original checkpoint layout can't say what noise this base was trained with: its betas are not Stable "
            "Diffusion's, or it predicts the sample; save a diffusers folder instead"
        )
    velocity = process.prediction_type == "v_prediction"
    keys = ["v_pred"] * velocity + ["ztsnr"] * process.zero_snr
    return {key: torch.empty(0) for key in keys}, {PREDICTION_KEY: "v" if velocity else "epsilon"}


def version(pipe: DiffusionPipeline) -> str:
    """Whose layout the checkpoint has: "SD 1", "SD 2" or "SDXL"."""
    if len(families.of(pipe).encoders) == 2:
        return "SDXL"
    return "SD 2" if is_open_clip(cast(Any, pipe).text_encoder) else "SD 1"


def _text_places(pipe: Any) -> list[tuple[str, Any, bool]]:
    """(key prefix, text encoder, whether in OpenCLIP's layout) for each text encoder of the pipeline."""
    if version(pipe) == "SDXL":
        return [
            ("conditioner.embedders.0.transformer.", pipe.text_encoder, False),
            ("conditioner.embedders.1.model.", pipe.text_encoder_2, True),
        ]
    if is_open_clip(pipe.text_encoder):
        return [("cond_stage_model.model.", pipe.text_encoder, True)]
    return [("cond_stage_model.transformer.", pipe.text_encoder, False)]


def is_open_clip(encoder: Any) -> bool:
    """Whether a text encoder is OpenCLIP's: its activation is GELU, CLIP's the quick approximation."""
    return encoder.config.hidden_act == "gelu"


def _left_out(pipe: Any, prefix: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with this prefix that the base's single file has beside ``own``, if the file is still there.

    diffusers does not load what it does not use: of Stable Diffusion 2 the last text layer and the text projection.
    """
    file: Path | None = getattr(pipe, "base_file", None)
    if file is None or not file.is_file():
        return {}
    dtype = next(iter(own.values())).dtype
    with safe_open(file, "pt") as weights:
        keys = [key for key in weights.keys() if key.startswith(prefix) and key not in own]  # noqa: SIM118 (no dict)
        return {key: weights.get_tensor(key).to(dtype) for key in keys}


def _clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"text_model.{key}": tensor for key, tensor in state.items()}


def _open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder in OpenCLIP's layout: queries, keys and values as one matrix, the projection transposed."""
    tensors = {original: state[own] for own, original in _OPEN_CLIP_ENDS.items()}
    if "text_projection.weight" in state:
        tensors["text_projection"] = state["text_projection.weight"].mT
    for key, tensor in state.items():
        if not (found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)):
            continue
        layer, part, parameter = found.groups()
        block = f"transformer.resblocks.{layer}"
        if part in _OPEN_CLIP:
            tensors[f"{block}.{_OPEN_CLIP[part]}.{parameter}"] = tensor
        elif part == "self_attn.q_proj":
            names = (f"encoder.layers.{layer}.self_attn.{side}_proj.{parameter}" for side in "qkv")
            tensors[f"{block}.attn.in_proj_{parameter}"] = torch.cat([state[name] for name in names])
    return tensors
