"""Find the layer of a pipeline that a key of another program's adapter file refers to."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffusers import DiffusionPipeline
from torch import nn

from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_keys
from hra_diffusion.adapters.linear_map import unsupported_reason
from hra_diffusion.adapters.targets import base_modules
from hra_diffusion.interop.key_names import PEFT_PREFIX, LayerPath, all_names, component_prefixes, current_name
from hra_diffusion.interop.numbered_layers import numbered_layers
from hra_diffusion.interop.transformer_keys import original_layers
from hra_diffusion.models import families

_UNSUPPORTED = (
    (r".*\.(diff_b|(lora_B|lora_up)(\.\w+)?\.bias|bias)", "it changes biases; adapters here change weights only"),
    (r".*\.([wb]_norm)", "it changes normalisation layers; adapters here change linear and conv layers"),
    (r".*(emb_params|emp_params|string_to_param|bundle_emb|clip_[gl]$|<.*>).*",
     "it is a textual inversion, not an adapter"),
    (r".*control.*", "it is for ControlNet"),
)  # fmt: skip
"""Patterns of keys that are recognised but not imported, with the reason."""


@dataclass(frozen=True)
class Place:
    """The layers that a file's layer changes: one, or those among which the outputs of an original layer are split.

    ``swapped``: the halves of the outputs are in the other order (see ``OriginalLayer``).
    """

    layers: tuple[LayerPath, ...]
    swapped: bool = False

    def __str__(self) -> str:
        return ", ".join(map(".".join, self.layers))


class LayerIndex:
    """Index of a pipeline's layers by their names in adapter files.

    ``component`` is the component of names without a prefix. ``keys`` and ``metadata`` are the file's, for formats that
    number their layers.
    """

    def __init__(self, pipe: DiffusionPipeline, component: str, keys: Sequence[str], metadata: Mapping[str, str]):
        self.components = pipeline.components(pipe)
        self.keys = frozenset(keys)
        self.layers: dict[LayerPath, Place] = {}
        """(component, name with underscores) -> its place."""
        self.prefixes, self.denoiser = component_prefixes(pipe), families.of(pipe).denoiser
        self.roots: set[str] = set()
        """First parts of the denoiser's layer names."""
        for name, model in self.components.items():
            for path in (path for path, module in base_modules(model) if not unsupported_reason(module)):
                for alias in all_names(pipe, name, path):
                    self._add(name, alias, Place(((name, path),)))
            for original in original_layers(model):
                self._add(name, original.name, Place(tuple((name, p) for p in original.paths), original.swapped))
        self.component = component or self._most_likely_component()
        self.numbered = {name: numbered_layers(name, model, keys, metadata) for name, model in self.components.items()}
        self.unreadable = self._unreadable_layers()

    def _add(self, component: str, name: str, place: Place) -> None:
        self.layers[component, name.replace(".", "_")] = place
        if component == self.denoiser:
            self.roots.add(name.partition(".")[0])

    def find(self, key: str) -> tuple[Place, str] | str:
        """(place, part) of a key, or the reason why the key is skipped."""
        if found := adapter_keys.NUMBERED.fullmatch(key):
            component, number, part = found[1], int(found[2]), found[3]
            layers = self.numbered.get(component, [])
            return (Place((layers[number],)), part) if number < len(layers) else no_layer(component, self.components)
        if found := self._split_key(key):
            place = self._place(found[0])
            return place if isinstance(place, str) else self.unreadable.get(place) or (place, found[1])
        return _unsupported_key(key) or self.unreadable.get(self._place_of_unknown(key)) or "its name is not known"

    def name_of(self, key: str) -> str:
        """The layer's name within its component, as written in the file."""
        found = adapter_keys.split(key)
        return _without_peft_prefix(self._split_component(found[0])[1]) if found else ""

    def _unreadable_layers(self) -> dict[Place | None, str]:
        """Layers with a tensor of an unknown kind, which may change the meaning of the layer's other tensors."""
        unknown = [key for key in self.keys if not (self._split_key(key) or _unsupported_key(key))]
        found = {self._place_of_unknown(key): key.removesuffix(".weight").rpartition(".")[2] for key in sorted(unknown)}
        return {place: f"its layer has a tensor of an unknown kind, {kind}" for place, kind in found.items() if place}

    def _place_of_unknown(self, key: str) -> Place | None:
        """The place of the layer that a key of an unknown kind belongs to."""
        place = self._place(key.removesuffix(".weight").rpartition(".")[0])
        return None if isinstance(place, str) else place

    def _split_key(self, key: str) -> tuple[str, str] | None:
        return adapter_keys.split(key, f"{key.removesuffix('.weight')}.on_input" in self.keys)

    def _place(self, module: str) -> Place | str:
        """The place of a module's name, or why there is none."""
        component, name = self._split_component(module)
        if component is None:
            return f"the prefix {name!r} is not known"
        name = _without_peft_prefix(name.replace(".processor.", "."))
        keys = ((component, known.replace(".", "_")) for known in (name, current_name(component, name)))
        return next((self.layers[key] for key in keys if key in self.layers), no_layer(component, self.components))

    def _most_likely_component(self) -> str:
        """For a PEFT file, which does not name its component, the one with most of its layers; otherwise ""."""
        split = filter(None, (adapter_keys.split(key) for key in self.keys if key.startswith(PEFT_PREFIX)))
        names = [_without_peft_prefix(module).replace(".", "_") for module, _ in split]
        return max(self.components, key=lambda c: sum((c, name) in self.layers for name in names)) if names else ""

    def _split_component(self, module: str) -> tuple[str | None, str]:
        """(component, name within it); for an unknown prefix (None, prefix)."""
        for prefix, component in self.prefixes.items():
            if module.startswith(prefix):
                return component, module.removeprefix(prefix)
        if self.component:
            return self.component, module
        first = module.partition(".")[0]
        if first in self.roots:
            return self.denoiser, module
        flat = re.match(r"(lora|lycoris|oft)_[^_.]+", module)
        return None, flat[0] if flat else first


def _unsupported_key(key: str) -> str:
    """Why a recognised key is not imported, or ""."""
    return next((reason for pattern, reason in _UNSUPPORTED if re.fullmatch(pattern, key)), "")


def _without_peft_prefix(name: str) -> str:
    return name.removeprefix(PEFT_PREFIX)


def no_layer(component: str, components: Mapping[str, nn.Module]) -> str:
    """The reason for skipping a layer that the base does not have."""
    if component not in components:
        return f"this base has no {component}"
    return f"this base has no such layer in its {component}"
