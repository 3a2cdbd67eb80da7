"""How files elsewhere name an adapter's layers: diffusers', kohya's, …; and which of our layers such a name means."""

import json
import re
from collections.abc import Mapping, Sequence

from diffusers import DiffusionPipeline
from torch import nn

from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_keys
from hra_diffusion.adapters.layer import unsupported
from hra_diffusion.errors import UserError
from hra_diffusion.interop import original
from hra_diffusion.models import families

Place = tuple[str, str]
"""A layer of a pipeline: (component, path)."""

_KNOWN_BUT = (
    (r".*\.(diff_b|(lora_B|lora_up)(\.\w+)?\.bias|bias)", "it changes biases; adapters here change weights only"),
    (r".*\.([wb]_norm)", "it changes normalisation layers; adapters here change linear and conv layers"),
    (r".*(emb_params|emp_params|string_to_param|bundle_emb|clip_[gl]$|<.*>).*",
     "it is a textual inversion, not an adapter"),
    (r".*control.*", "it is for ControlNet"),
)  # fmt: skip
_PREFIXES = {
    "lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
    "lycoris_": "unet",
    "oft_unet_": "unet",  # networks/oft.py of sd-scripts 48d368fa
    "unet.": "unet", "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2",
    # ComfyUI's own names
    "diffusion_model.": "unet", "model.diffusion_model.": "unet",
    # OneTrainer's files for ComfyUI: modules/model/StableDiffusion{,XL}Model.py at 23df3832
    "text_encoders.clip_l.transformer.": "text_encoder", "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    # the Open Model Initiative's names, which OneTrainer wrote before
    "clip_l.": "text_encoder", "clip_h.": "text_encoder", "clip_g.": "text_encoder_2",
}  # fmt: skip
_WRAPPED = "base_model.model."
"""How PEFT's names of layers begin."""
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

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
    return f"{dict(family.kohya_prefixes)[component]}_{path}".replace(".", "_")


class Index:
    """Finds the layer of a pipeline that a key of another program's file means.

    ``component``: where the file does not say it. ``keys`` and ``metadata`` of the file count for formats that number
    their layers.
    """

    def __init__(self, pipe: DiffusionPipeline, component: str, keys: Sequence[str], metadata: Mapping[str, str]):
        self.components = pipeline.components(pipe)
        self.keys = frozenset(keys)
        self.layers: dict[Place, Place] = {}
        self.roots: set[str] = set()
        """How bare names of the UNet's layers begin."""
        for name, model in self.components.items():
            for path in (path for path, module in model.named_modules() if not unsupported(module)):
                for alias in _aliases(pipe, name, path):
                    self.layers[name, alias.replace(".", "_")] = (name, path)
                    self.roots |= {alias.partition(".")[0]} if name == "unet" else set()
        self.component = component or self._most_likely_component()
        self.numbered = {name: _numbered(name, model, keys, metadata) for name, model in self.components.items()}
        self.unreadable = self._unreadable()

    def find(self, key: str) -> tuple[Place, str] | str:
        """(layer, part) of a key, or the reason why it is passed over."""
        if found := adapter_keys.NUMBERED.fullmatch(key):
            component, number, part = found[1], int(found[2]), found[3]
            layers = self.numbered.get(component, [])
            return (layers[number], part) if number < len(layers) else _no_place(component, self.components)
        if found := self._split_key(key):
            layer = self._layer(found[0])
            return layer if isinstance(layer, str) else self.unreadable.get(layer) or (layer, found[1])
        return _known_but(key) or self.unreadable.get(self._layer_with(key)) or "its name is not known"

    def _unreadable(self) -> dict[Place | None, str]:
        """The layers with a tensor of an unknown kind, without which the others may mean something else."""
        strange = [key for key in self.keys if not (self._split_key(key) or _known_but(key))]
        found = {self._layer_with(key): key.removesuffix(".weight").rpartition(".")[2] for key in sorted(strange)}
        return {layer: f"its layer has a tensor of an unknown kind, {kind}" for layer, kind in found.items() if layer}

    def _layer_with(self, key: str) -> Place | None:
        """The layer that a key of an unknown kind belongs to."""
        layer = self._layer(key.removesuffix(".weight").rpartition(".")[0])
        return None if isinstance(layer, str) else layer

    def _split_key(self, key: str) -> tuple[str, str] | None:
        return adapter_keys.split(key, f"{key.removesuffix('.weight')}.on_input" in self.keys)

    def name_of(self, key: str) -> str:
        """The layer's name within its component, as the file writes it."""
        found = adapter_keys.split(key)
        return _own_name(self._split(found[0])[1]) if found else ""

    def _layer(self, module: str) -> Place | str:
        """The layer a module's name means, or why there is none."""
        component, name = self._split(module)
        if component is None:
            return f"the prefix {name!r} is not known"
        name = _own_name(name.replace(".processor.", "."))
        place = self.layers.get((component, _modern(component, name).replace(".", "_")))
        return place or _no_place(component, self.components)

    def _most_likely_component(self) -> str:
        """The component that has most of the layers of a PEFT file, which does not say whose they are; else ""."""
        wrapped = filter(None, (adapter_keys.split(key) for key in self.keys if key.startswith(_WRAPPED)))
        own = [_own_name(module).replace(".", "_") for module, _ in wrapped]
        return max(self.components, key=lambda c: sum((c, name) in self.layers for name in own)) if own else ""

    def _split(self, module: str) -> tuple[str | None, str]:
        """(component, name within it); for an unknown prefix None, and the prefix in place of the name."""
        for prefix, component in _PREFIXES.items():
            if module.startswith(prefix):
                return component, module.removeprefix(prefix)
        if self.component:
            return self.component, module
        first = module.partition(".")[0]
        if first in self.roots:
            return "unet", module
        flat = re.match(r"(lora|lycoris|oft)_[^_.]+", module)
        return None, flat[0] if flat else first


def _known_but(key: str) -> str:
    """Why a key of a known kind is not used, or ""."""
    return next((reason for pattern, reason in _KNOWN_BUT if re.fullmatch(pattern, key)), "")


def _own_name(name: str) -> str:
    """A layer's name without PEFT's wrappers."""
    return name.removeprefix(_WRAPPED)


def _modern(component: str, name: str) -> str:
    """A layer's name in old diffusers' files ("…attn1.to_out", "…self_attn.to_q") as it is now."""
    first, dot, last = name.rpartition(".")
    if component == "unet":
        return f"{name}.0" if last == "to_out" else name
    return first + dot + _OLD_TEXT.get(last, last)


def _no_place(component: str, components: Mapping[str, nn.Module]) -> str:
    if component not in components:
        return f"this base has no {component}"
    return f"this base has no such layer in its {component}"


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
    numbers = {
        int(found[2]) for key in keys if (found := adapter_keys.NUMBERED.fullmatch(key)) and found[1] == component
    }
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
