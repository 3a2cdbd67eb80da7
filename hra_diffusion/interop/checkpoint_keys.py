"""Keys of the original checkpoint layout ("model.diffusion_model.input_blocks.4.1…") for diffusers' parameter names.

Sources: the checkpoints of CompVis' latent-diffusion, Stability's generative-models (SDXL) and OpenCLIP, as diffusers'
``from_single_file`` reads them.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hra_diffusion.errors import UserError

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
"""Prefix of the keys of a text layer of Stable Diffusion 2; group 1 is its index."""


def unet_key(path: str, config: Mapping[str, Any]) -> str:
    """The original name of a UNet's layer or parameter: "input_blocks.4.1.…" for "down_blocks.1.attentions.0.…".

    Raises UserError for a layer without a place in the original layout.
    """
    for own, original in _UNET_ENDS.items():
        if path == own or path.startswith(f"{own}."):
            return original + path.removeprefix(own)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", path):
        kind, number, rest = found.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{_key_in_block(kind, rest)}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", path):
        way, block, kind, number, rest = found.groups()
        return _block_key(way, int(block), kind, int(number), rest, config)
    raise UserError(
        f"the original checkpoint layout has no place for the UNet's {path}; save a diffusers folder instead"
    )


def _block_key(way: str, block: int, kind: str, number: int, rest: str, config: Mapping[str, Any]) -> str:
    layers = config["layers_per_block"]
    if way == "down":
        place = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else number)
        side = {"resnets": "0", "attentions": "1", "downsamplers": "0"}[kind]
        return f"input_blocks.{place}.{side}.{_key_in_block(kind, rest)}"
    place = block * (layers + 1) + (layers if kind == "upsamplers" else number)
    attends = "Attn" in config["up_block_types"][block]
    side = {"resnets": "0", "attentions": "1", "upsamplers": "2" if attends else "1"}[kind]
    return f"output_blocks.{place}.{side}.{_key_in_block(kind, rest)}"


def _key_in_block(kind: str, rest: str) -> str:
    """The name within a block. The layout renames the layers of residual blocks, but not those of attention."""
    if kind == "downsamplers":
        return rest.replace("conv", "op", 1)
    part, dot, parameter = rest.partition(".")
    return _RESNET[part] + dot + parameter if kind == "resnets" else rest


def vae_key(key: str, levels: int) -> str:
    """The original name of a VAE's parameter. The original decoder numbers its levels in reverse order."""
    key = key.replace(".downsamplers.0.conv", ".downsample.conv").replace(".upsamplers.0.conv", ".upsample.conv")
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d+)", r"down.\1", key)
    key = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", key)
    key = re.sub(r"(up\.\d+)\.resnets\.(\d+)", r"\1.block.\2", key)
    key = re.sub(r"mid_block\.(\w+\.\d)", lambda found: f"mid.{_VAE_MIDDLE[found[1]]}", key)
    for own, original in _VAE_PARTS.items():
        key = key.replace(f".{own}.", f".{original}.")
    return key


def clip_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a CLIP text encoder in the original layout."""
    return {f"text_model.{key}": tensor for key, tensor in state.items()}


def open_clip_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a text encoder in OpenCLIP's layout: one matrix for q, k and v, a transposed projection."""
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
