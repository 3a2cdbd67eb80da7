"""Names of the layers in the original checkpoints of Stable Diffusion 3 and FLUX.2 ("joint_blocks.0.x_block.attn.qkv").

kohya's trainers, ComfyUI and ai-toolkit use these names. The originals compute q, k and v in one layer. Sources: the
checkpoints of Stability AI's sd3-ref and Black Forest Labs' flux2, as diffusers' ``from_single_file`` reads them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hra_diffusion.adapters.targets import base_modules


@dataclass(frozen=True)
class OriginalLayer:
    """A layer of an original checkpoint.

    Attributes:
        name: its name.
        paths: diffusers' layers among which its outputs are split, in order.
        swapped: whether diffusers has the halves of its outputs, shift and scale, in the other order.
    """

    name: str
    paths: tuple[str, ...]
    swapped: bool = False


def _blocks(own: str, original: str, layers: Mapping[str, str]) -> dict[str, str]:
    return {f"{own}.*.{path}": f"{original}.*.{name}" for path, name in layers.items()}


_SD3 = {
    **_blocks("transformer_blocks", "joint_blocks", {
        "attn.to_q": "x_block.attn.qkv", "attn.to_k": "x_block.attn.qkv", "attn.to_v": "x_block.attn.qkv",
        "attn.add_q_proj": "context_block.attn.qkv", "attn.add_k_proj": "context_block.attn.qkv",
        "attn.add_v_proj": "context_block.attn.qkv",
        "attn2.to_q": "x_block.attn2.qkv", "attn2.to_k": "x_block.attn2.qkv", "attn2.to_v": "x_block.attn2.qkv",
        "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
        "attn2.to_out.0": "x_block.attn2.proj",
        "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
        "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
    }),
    "pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear",
}  # fmt: skip
_FLUX2 = {
    **_blocks("transformer_blocks", "double_blocks", {
        "attn.to_q": "img_attn.qkv", "attn.to_k": "img_attn.qkv", "attn.to_v": "img_attn.qkv",
        "attn.add_q_proj": "txt_attn.qkv", "attn.add_k_proj": "txt_attn.qkv", "attn.add_v_proj": "txt_attn.qkv",
        "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
        "ff.linear_in": "img_mlp.0", "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0", "ff_context.linear_out": "txt_mlp.2",
    }),
    **_blocks("single_transformer_blocks", "single_blocks", {
        "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2",
    }),
    "x_embedder": "img_in", "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear",
}  # fmt: skip
_LAYOUTS = {"SD3Transformer2DModel": _SD3, "Flux2Transformer2DModel": _FLUX2}
"""Class of the transformer -> diffusers' names of its layers -> original ones; * stands for the block's number."""


def original_layers(model: Any) -> list[OriginalLayer]:
    """Return the original layers of a transformer; none for other models, such as a UNet."""
    if (layout := _LAYOUTS.get(type(model).__name__)) is None:
        return []
    order = list(layout)
    found: dict[str, list[tuple[int, str]]] = {}
    for path, _ in base_modules(model):
        block = re.match(r"\w+_blocks\.(\d+)\.", path)
        template = re.sub(r"(_blocks\.)\d+", r"\1*", path, count=1)
        if name := layout.get(template):
            number = block[1] if block else ""
            found.setdefault(name.replace("*", number), []).append((order.index(template), path))
    # the modulations of diffusers' AdaLayerNormContinuous
    swapped = {"norm_out.linear", f"transformer_blocks.{model.config.num_layers - 1}.norm1_context.linear"}
    layers = {name: tuple(path for _, path in sorted(paths)) for name, paths in found.items()}
    return [OriginalLayer(name, paths, paths[0] in swapped) for name, paths in layers.items()]


def swap_halves(tensor: Tensor) -> Tensor:
    """Return the tensor with the halves of its first dimension exchanged."""
    return torch.cat(tensor.chunk(2)[::-1])
