"""How files elsewhere name an adapter's layers: diffusers', kohya's, …; and which of our layers such a name means."""

import json
import re
from collections.abc import Mapping, Sequence

from diffusers import DiffusionPipeline
from torch import nn

from hra_diffusion import families, pipeline
from hra_diffusion.errors import UserError
from hra_diffusion.interop import original
from hra_diffusion.layer import unsupported

Place = tuple[str, str]
"""A layer of a pipeline: (component, path)."""

_PARTS = (
    (r"_lora\.(down|up)\.weight", "{}"),  # old diffusers: attn1.processor.to_q_lora.down.weight
    (r"\.lora(?:_linear_layer)?\.(down|up)\.weight", "{}"),
    (r"\.lora_(down|up|mid)\.weight", "{}"),
    (r"\.lora_A(?:\.default)?\.weight", "down"),
    (r"\.lora_B(?:\.default)?\.weight", "up"),
    (r"\.(alpha)", "{}"),
    (r"\.dora_scale", "dora_scale"),
    (r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?", "magnitude"),
    (r"\.(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|diff)", "{}"),
    (r"\.hra_u(?:\.default)?", "hra_u"),
    (r"\.oft_R(?:\.default)?\.weight", "oft_R"),
)
_KNOWN_BUT = (
    (r".*\.(diff_b|(lora_B|lora_up)(\.\w+)?\.bias|bias)", "it changes biases; adapters here change weights only"),
    (r".*\.([wb]_norm)", "it changes normalisation layers; adapters here change linear and conv layers"),
    (r".*\.(on_input|a1\.weight|a2\.weight|b1\.weight|b2\.weight|oft_blocks|oft_diag|rescale|scalar)",
     "IA³, GLoRA and LyCORIS' OFT are not read"),
    (r".*(emb_params|emp_params|string_to_param|clip_[gl]$|<.*>).*", "it is a textual inversion, not an adapter"),
    (r".*control.*", "it is for ControlNet"),
)  # fmt: skip
_PREFIXES = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
             "lora_te2_": "text_encoder_2", "lycoris_": "unet"}  # fmt: skip
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

_NUMBERED = re.compile(r"(unet|text_encoder):(\d+):(up|down)")
_BLOCKS = ("down_blocks", "up_blocks", "mid_block")
_WITHIN = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj",
           "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")  # fmt: skip
_TEXT_ORDER = ("k_proj", "v_proj", "q_proj", "out_proj")


def public(component: str, path: str) -> str:
    """A layer's path as files have it: text encoders' with the "text_model." that transformers 5 dropped."""
    if not component.startswith("text_encoder") or path.startswith(("text_model.", "text_projection")):
        return path
    return f"text_model.{path}"


def kohya(pipe: DiffusionPipeline, component: str, path: str) -> str:
    """A layer as kohya's files name it: "lora_unet_down_blocks_0_…", of SDXL "lora_unet_input_blocks_4_1_…"."""
    family, path = families.of(pipe), public(component, path)
    if component == "unet" and family.original_unet_names:
        path = original.unet_name(path, pipe.unet.config)
    return f"{dict(family.kohya)[component]}_{path}".replace(".", "_")


class Index:
    """Finds the layer of a pipeline that a key of a stranger's file means.

    ``component``: where the file says nothing of it. ``keys`` and ``metadata`` of the file count for formats that
    number their layers.
    """

    def __init__(self, pipe: DiffusionPipeline, component: str, keys: Sequence[str], metadata: Mapping[str, str]):
        self.components = pipeline.components(pipe)
        self.component = component
        self.layers: dict[Place, Place] = {}
        for name, model in self.components.items():
            for path in (path for path, module in model.named_modules() if not unsupported(module)):
                for alias in _aliases(pipe, name, path):
                    self.layers[name, alias.replace(".", "_")] = (name, path)
        self.numbered = {name: _numbered(name, model, keys, metadata) for name, model in self.components.items()}

    def find(self, key: str) -> tuple[Place, str] | str:
        """(layer, part) of a key, or the reason why it is passed over."""
        if found := _NUMBERED.fullmatch(key):
            component, number, part = found[1], int(found[2]), found[3]
            layers = self.numbered.get(component, [])
            return (layers[number], part) if number < len(layers) else _no_place(component, self.components)
        for pattern, part in _PARTS:
            if found := re.fullmatch(f"(.+?){pattern}", key):
                layer = self._layer(found[1])
                return layer if isinstance(layer, str) else (layer, part.format(*found.groups()[1:]))
        return next((reason for pattern, reason in _KNOWN_BUT if re.fullmatch(pattern, key)), "its name is not known")

    def _layer(self, module: str) -> Place | str:
        """The layer a module's name means, or why there is none."""
        component, name = self._split(module)
        name = name.replace(".processor.", ".").removeprefix("base_model.model.")
        for candidate in [component] if component else self.components:
            if place := self.layers.get((candidate, _modern(candidate, name).replace(".", "_"))):
                return place
        return _no_place(component, self.components)

    def _split(self, module: str) -> tuple[str, str]:
        """(component, name within it); the component is "" where nothing says which."""
        for prefix, component in _PREFIXES.items():
            if module.startswith(prefix):
                return component, module.removeprefix(prefix)
        first, _, rest = module.partition(".")
        if first in ("unet", "text_encoder", "text_encoder_2"):
            return first, rest
        if self.component or module.startswith("base_model.model."):
            return self.component, module
        return "unet", module


def _modern(component: str, name: str) -> str:
    """A layer's name in old diffusers' files ("…attn1.to_out", "…self_attn.to_q") as it is now."""
    first, dot, last = name.rpartition(".")
    if component == "unet":
        return f"{name}.0" if last == "to_out" else name
    return first + dot + _OLD_TEXT.get(last, last)


def _no_place(component: str, components: Mapping[str, nn.Module]) -> str:
    if component and component not in components:
        return f"this base has no {component}"
    return f"this base has no such layer{f' in its {component}' if component else ''}"


def _aliases(pipe: DiffusionPipeline, component: str, path: str) -> list[str]:
    """All names that files have for a layer."""
    if component != "unet":
        return [path, public(component, path), path.removeprefix("text_model.")]
    try:
        return [path, original.unet_name(path, pipe.unet.config)]
    except UserError:  # the original has no such layer
        return [path]


def _numbered(component: str, model: nn.Module, keys: Sequence[str], metadata: Mapping[str, str]) -> list[Place]:
    """The layers in the order in which cloneofsimo's files number them, or none if their count is another.

    It is the order of the classes' modules in diffusers 0.10: feed-forward before cross-attention, the middle last.
    """
    numbers = {int(found[2]) for key in keys if (found := _NUMBERED.fullmatch(key)) and found[1] == component}
    if not numbers:
        return []
    paths = [path for path, module in model.named_modules() if not unsupported(module)]
    order = _unet_order if component == "unet" else _text_order
    wanted = {rank: path for path in paths if (rank := order(path)) is not None}
    layers = [wanted[rank] for rank in sorted(wanted)]
    if "GEGLU" not in _classes(component, metadata, len(numbers), len(layers)):
        layers = [path for path in layers if ".ff." not in path]
    return [(component, path) for path in layers] if len(layers) == max(numbers) + 1 else []


def _classes(component: str, metadata: Mapping[str, str], count: int, all_layers: int) -> list[str]:
    """The module classes whose layers were adapted: as the file says, else by their count."""
    try:
        return list(json.loads(metadata[component]))
    except (KeyError, ValueError, TypeError):
        return ["GEGLU"] if count == all_layers else []


def _unet_order(path: str) -> tuple | None:
    found = re.fullmatch(r"(\w+)\.(.*attentions\.\d+)\.transformer_blocks\.(\d+)\.(.+)", path)
    if not found or found[1] not in _BLOCKS or found[4] not in _WITHIN:
        return None
    numbers = [int(number) for number in re.findall(r"\d+", found[2])]
    return (_BLOCKS.index(found[1]), *numbers, int(found[3]), _WITHIN.index(found[4]))


def _text_order(path: str) -> tuple | None:
    found = re.fullmatch(r"(?:text_model\.)?encoder\.layers\.(\d+)\.self_attn\.(\w+)", path)
    return (int(found[1]), _TEXT_ORDER.index(found[2])) if found else None
