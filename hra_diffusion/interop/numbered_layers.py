"""Layer numbers in cloneofsimo's files ("unet:12:up"), which have no layer names.

The order is that of the modules in diffusers 0.10: feed-forward before cross-attention, the middle block last.
"""

import re
from collections.abc import Mapping, Sequence

import pydantic_core
from torch import nn

from hra_diffusion.adapters import adapter_keys
from hra_diffusion.adapters.linear_map import unsupported_reason
from hra_diffusion.adapters.targets import base_modules
from hra_diffusion.interop.key_names import LayerPath

_BLOCKS = ("down_blocks", "up_blocks", "mid_block")
_WITHIN = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj",
           "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")  # fmt: skip
_TEXT_ORDER = ("k_proj", "v_proj", "q_proj", "out_proj")


def numbered_layers(
    component: str, model: nn.Module, keys: Sequence[str], metadata: Mapping[str, str]
) -> list[LayerPath]:
    """A component's layers in the order of their numbers in the file; empty if the counts differ."""
    numbers = {
        int(found[2]) for key in keys if (found := adapter_keys.NUMBERED.fullmatch(key)) and found[1] == component
    }
    if not numbers:
        return []
    paths = [path for path, module in base_modules(model) if not unsupported_reason(module)]
    position = _unet_position if component == "unet" else _text_position
    by_position = {place: path for path in paths if (place := position(path)) is not None}
    layers = [by_position[place] for place in sorted(by_position)]
    if "GEGLU" not in _adapted_classes(component, metadata, len(numbers), len(layers)):
        layers = [path for path in layers if ".ff." not in path]
    return [(component, path) for path in layers] if len(layers) == max(numbers) + 1 else []


def _adapted_classes(component: str, metadata: Mapping[str, str], count: int, all_layers: int) -> list[str]:
    """The module classes with adapted layers, from the metadata or else by the number of layers."""
    try:
        return list(pydantic_core.from_json(metadata[component]))
    except (KeyError, ValueError, TypeError):
        return ["GEGLU"] if count == all_layers else []


def _unet_position(path: str) -> tuple | None:
    found = re.fullmatch(r"(\w+)\.(.*attentions\.\d+)\.transformer_blocks\.(\d+)\.(.+)", path)
    if not found or found[1] not in _BLOCKS or found[4] not in _WITHIN:
        return None
    numbers = [int(number) for number in re.findall(r"\d+", found[2])]
    return (_BLOCKS.index(found[1]), *numbers, int(found[3]), _WITHIN.index(found[4]))


def _text_position(path: str) -> tuple | None:
    found = re.fullmatch(r"(?:text_model\.)?encoder\.layers\.(\d+)\.self_attn\.(\w+)", path)
    return (int(found[1]), _TEXT_ORDER.index(found[2])) if found else None
