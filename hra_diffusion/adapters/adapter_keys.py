"""Suffixes of the keys in other programs' adapter files, which say what part of a layer's adapter a tensor is."""

import re
from collections.abc import Iterable

_PARTS = [
    (re.compile(rf"(.+?){pattern}"), part)
    for pattern, part in (
        (r"_lora\.(down|up)\.weight", "{}"),  # old diffusers: attn1.processor.to_q_lora.down.weight
        (r"\.lora(?:_linear_layer)?\.(down|up)\.weight", "{}"),
        (r"\.lora_(down|up|mid)\.weight", "{}"),
        (r"\.lora_A(?:\.default)?\.weight", "down"),
        (r"\.lora_B(?:\.default)?\.weight", "up"),
        (r"\.(alpha)", "{}"),
        (r"\.dora_scale", "dora_scale"),
        (r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?", "magnitude"),
        (r"\.(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|diff)(?:\.default)?", "{}"),
        (r"\.hra_u(?:\.default)?", "hra_u"),
        (r"\.oft_R(?:\.default)?\.weight", "oft_R"),
        (r"\.(boft_[Rs])(?:\.default)?", "{}"),
        (r"\.oft_R\.scaled_oft", "scaled_oft"),
        (r"\.(oft_blocks|rescale|on_input)", "{}"),
        (r"\.(a1|a2|b1|b2|bm)\.weight", "glora_{}"),
    )
]
NUMBERED = re.compile(r"(unet|text_encoder):(\d+):(up|down)")
"""Keys of cloneofsimo's files, in which layers are numbered."""


def split(key: str, has_scales: bool = False) -> tuple[str, str] | None:
    """Split a key into (layer name, part); None for a key that is not an adapter's.

    ``has_scales``: the file has an ``on_input`` for the layer, so its ``weight`` belongs to (IA)³.
    """
    if has_scales and key.endswith(".weight"):
        return key.removesuffix(".weight"), "ia3"
    for pattern, part in _PARTS:
        if found := pattern.fullmatch(key):
            return found[1], part.format(*found.groups()[1:])
    return None


def has_adapter_keys(keys: Iterable[str]) -> bool:
    """Whether any key is one of an adapter file of another program."""
    return any(NUMBERED.fullmatch(key) or split(key) for key in keys)
