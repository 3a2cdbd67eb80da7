"""Another program's adapter file -> an adapter on a given base: what was understood, what was skipped and why.

Each layer of the file becomes a plain LoRA of its own rank, exactly: a dense change is one of full rank. What depends
on the frozen weight (DoRA, OFT, HRA of odd rank) is exact on the base it was imported for.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from diffusers import DiffusionPipeline
from torch import Generator, Tensor, nn

from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_file, registry
from hra_diffusion.adapters.adapter_file import MAX_RANK, PICKLE_SUFFIXES, WEIGHT_NAMES, AdapterFileError, AdapterInfo
from hra_diffusion.adapters.fingerprint import layer_probe
from hra_diffusion.adapters.linear_map import as_matrix
from hra_diffusion.errors import UserError
from hra_diffusion.files import MAX_NAME, validated_name
from hra_diffusion.interop import lora_conversion, peft_settings
from hra_diffusion.interop.key_names import LayerPath, public_path
from hra_diffusion.interop.layer_index import LayerIndex
from hra_diffusion.interop.lora_conversion import LayerParts
from hra_diffusion.interop.peft_settings import PeftSettings

LEFT_OUT = "its settings (target_modules, exclude_modules, layers_to_transform) leave this layer out"


class AdapterImportError(UserError):
    """A file can't be imported: what is wrong with it, and what to do."""


@dataclass(frozen=True)
class Source:
    """One safetensors file as it is. ``settings`` are PEFT's, by component; "" holds for the whole file. ``in_folder``:
    they come from a folder of PEFT's."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    settings: dict[str, PeftSettings] = field(default_factory=dict)
    component: str = ""
    in_folder: bool = False


@dataclass(frozen=True)
class Report:
    """What became of a file's keys. ``skipped``: reason -> keys; ``layers``: component -> how many; ``kinds``: what the
    layers were ("LoRA", "DoRA", "LoHa", …) -> how many."""

    file: str
    keys: int
    layers: dict[str, int]
    kinds: dict[str, int]
    ranks: dict[int, int]
    skipped: dict[str, list[str]]
    metadata: dict[str, str]

    @property
    def used(self) -> int:
        """How many keys were understood."""
        return self.keys - sum(len(keys) for keys in self.skipped.values())

    @property
    def lines(self) -> list[str]:
        """What was understood, what was skipped and why, for reading."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        places = ", ".join(f"{count} layers of the {component}" for component, count in self.layers.items())
        ranks = ", ".join(f"{rank} ({count})" for rank, count in sorted(self.ranks.items()))
        lines = [f"{self.used} of {self.keys} keys understood: {kinds}; {places}; rank {ranks}"]
        for reason, keys in self.skipped.items():
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            lines.append(f"skipped, {reason}: {keys[0]}{more}")
        return lines


@dataclass(frozen=True)
class Imported:
    """An adapter read from elsewhere in our terms. ``ranks``: component -> layer -> rank, where it is not the options';
    ``ranks_found``: rank -> how many layers."""

    method: str
    options: dict[str, Any]
    ranks: dict[str, dict[str, int]]
    tensors: dict[str, Tensor]
    ranks_found: dict[int, int]


def import_adapter(
    pipe: DiffusionPipeline, path: str | Path, output: str | Path, name: str, trigger: str = ""
) -> tuple[Path, Report]:
    """Write another program's adapter for this pipeline's base as ``output/name.safetensors``.

    Returns that file and the report. Raises UserError: AdapterImportError, FileError, or for a name that no adapter can
    have.
    """
    name = validated_name(name)
    imported, places, report = parse_adapter(pipe, path)
    components = pipeline.components(pipe)
    fingerprint: dict[str, dict[str, float]] = {}
    for component, layer in places:
        fingerprint.setdefault(component, {})[layer] = layer_probe(components[component].get_submodule(layer))
    info = AdapterInfo(
        name=name,
        method=imported.method,
        options=imported.options,
        ranks=imported.ranks,
        base=pipeline.base_name_of(pipe),
        fingerprint=fingerprint,
        targets="imported",
        trigger=trigger or report.metadata.get("modelspec.trigger_phrase", ""),
        training={"imported": report.file, "metadata": report.metadata},
    )
    place = Path(output) / f"{name}.safetensors"
    adapter_file.save(place, components, info, imported.tensors)
    return place, report


def name_for(file: Path) -> str:
    """A name for an adapter made of its file's: letters, digits, - and _ stay."""
    stem = unicodedata.normalize("NFC", file.parent.name if file.name in WEIGHT_NAMES else file.stem)
    return re.sub(r"\W+", "-", stem).strip("-_")[:MAX_NAME] or "imported"


def parse_adapter(pipe: DiffusionPipeline, path: str | Path) -> tuple[Imported, list[LayerPath], Report]:
    """Read a file or a PEFT folder for this pipeline's base: the adapter, its layers, the report. Nothing is written.

    Raises AdapterImportError for one that is damaged (half a file, NaN, a factor missing, ranks that don't fit), for
    another base, or with nothing in it that is understood.
    """
    sources = list(_sources(Path(path)))
    skipped: dict[str, list[str]] = {}
    layers: dict[LayerPath, LayerParts] = {}
    for source in sources:
        _collect(pipe, source, layers, skipped)
    if not layers:
        reasons = "; ".join(f"{reason} ({len(keys)} keys)" for reason, keys in skipped.items())
        raise AdapterImportError(
            f"{path} holds no adapter for {pipeline.base_name_of(pipe)}: {reasons or 'it has no tensors'}"
        )
    imported = _translated(pipe, str(path), layers)
    report = Report(
        file=Path(path).name,
        keys=sum(len(source.tensors) for source in sources),
        layers=dict(Counter(component for component, _ in layers)),
        kinds=dict(Counter(lora_conversion.kind(parts) for parts in layers.values())),
        ranks=imported.ranks_found,
        skipped=skipped,
        metadata={key: value for source in sources for key, value in source.metadata.items()},
    )
    return imported, list(layers), report


def _sources(path: Path) -> Iterator[Source]:
    """The file itself, or those of a folder: PEFT's own, or one such for each component."""
    if path.suffix in PICKLE_SUFFIXES:
        raise AdapterImportError(f"{path} is a pickle, which can run code when opened; get it as .safetensors")
    if not path.is_dir():
        yield _in_folder(path) if path.name in WEIGHT_NAMES else _source(path)
        return
    if not (files := adapter_file.find_weights(path)):
        raise AdapterImportError(f"{path} holds none of {', '.join(WEIGHT_NAMES)}; give the file itself")
    yield from map(_in_folder, files)


def _in_folder(weights: Path) -> Source:
    """The weights of a folder with the settings beside them. The folder may be named after its component."""
    place, component = weights.parent / "adapter_config.json", weights.parent.resolve().name
    settings = _json(place) if place.is_file() else None
    return _source(weights, settings, component if component in pipeline.COMPONENTS else "")


def _json(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterImportError(f"{path} can't be read: {error}; copy the folder again") from None
    if not isinstance(settings, dict):
        raise AdapterImportError(f"{path} is no JSON object; copy the folder again")
    return settings


def _source(path: Path, settings: dict[str, Any] | None = None, component: str = "") -> Source:
    try:
        with adapter_file.open_safetensors(path) as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("format") == adapter_file.FORMAT:
                raise AdapterImportError(f"{path} is an adapter of ours already; use it as it is")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except AdapterFileError as error:
        raise AdapterImportError(str(error)) from None
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise AdapterImportError(
                f"{path} holds NaN or infinite values in {key}; get the file again, or an earlier one"
            )
    found = {"": settings} if settings else _adapter_metadata(path, metadata)
    try:
        checked = {key: peft_settings.read(value) for key, value in found.items()}
    except peft_settings.SettingsError as error:
        raise AdapterImportError(f"{path}: {error}") from None
    except ValueError as error:
        raise AdapterImportError(f"the settings of {path} are damaged: {error}; get it again") from None
    return Source(path, tensors, metadata, checked, component, in_folder=bool(settings))


def _adapter_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's settings by component, as diffusers keeps them in a file's metadata: "unet.lora_alpha" in a pipeline's,
    "lora_alpha" in one of a single model."""
    try:
        flat = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        raise AdapterImportError(
            f"{path} has damaged metadata (lora_adapter_metadata is no JSON); get it again"
        ) from None
    settings: dict[str, dict[str, Any]] = {}
    for key, value in flat.items() if isinstance(flat, dict) else ():
        component, _, name = key.rpartition(".")
        settings.setdefault(component, {})[name] = value
    return settings


def _collect(
    pipe: DiffusionPipeline, source: Source, layers: dict[LayerPath, LayerParts], skipped: dict[str, list[str]]
) -> None:
    """Sort a file's keys: by layer of this base, or by the reason why not. Raises AdapterImportError."""
    index = LayerIndex(pipe, source.component, list(source.tensors), source.metadata)
    for key, tensor in source.tensors.items():
        found = index.find(key)
        if not isinstance(found, str) and _left_out(pipe, source, found[0], index.name_of(key)):
            found = LEFT_OUT
        if isinstance(found, str):
            skipped.setdefault(found, []).append(key)
            continue
        place, part = found
        settings = _layer_settings(source, place, index.name_of(key))
        parts = layers.setdefault(place, LayerParts({}, settings)).tensors
        if part in parts:
            raise AdapterImportError(
                f"{source.path} names {'.'.join(place)} twice ({key}); which one counts can't be known"
            )
        parts[part] = tensor


def _left_out(pipe: DiffusionPipeline, source: Source, place: LayerPath, name: str) -> bool:
    """Whether the settings of a PEFT folder don't target the layer that it calls ``name``: PEFT then ignores it."""
    if not source.in_folder:
        return False
    component, path = place
    return not source.settings[""].targets(name, pipeline.components(pipe)[component].get_submodule(path))


def _layer_settings(source: Source, place: LayerPath, name: str) -> PeftSettings | None:
    """PEFT's settings for a layer, which patterns may call as the file does, or as any version of transformers does."""
    settings = source.settings.get("", source.settings.get(place[0]))
    return settings and settings.of_layer([name, place[1], public_path(*place)])


def _translated(pipe: DiffusionPipeline, file: str, layers: Mapping[LayerPath, LayerParts]) -> Imported:
    """The layers in our terms: the method of ours that they are, else a plain LoRA with a rank for each layer."""
    components = pipeline.components(pipe)
    if native := _native(layers, components):
        return native
    tensors: dict[str, Tensor] = {}
    sizes: dict[LayerPath, int] = {}
    for (component, path), parts in layers.items():
        try:
            up, down = lora_conversion.to_lora(components[component].get_submodule(path), parts)
        except lora_conversion.PartsError as error:
            raise AdapterImportError(f"{file}: {component}.{path}: {error}") from None
        tensors |= {f"{component}.{path}.up": up, f"{component}.{path}.down": down}
        sizes[component, path] = len(down)
    usual = min(Counter(sizes.values()).most_common(1)[0][0], MAX_RANK)
    ranks: dict[str, dict[str, int]] = {}
    for (component, path), rank in sizes.items():
        if rank != usual:
            ranks.setdefault(component, {})[path] = rank
    return Imported("lora", {"rank": usual}, ranks, tensors, dict(Counter(sizes.values())))


def _native(layers: Mapping[LayerPath, LayerParts], components: Mapping[str, nn.Module]) -> Imported | None:
    """A PEFT folder of a method that is ours too, as that method."""
    if (settings := next(iter(layers.values())).settings) is None:
        return None
    for method in map(registry.get_method, registry.method_names()):
        form = method.peft
        if not form or not form.from_peft or form.peft_type != settings.peft_type:
            continue
        try:
            config = method.parse(form.from_peft(settings.model_dump()))
        except ValueError:  # options that ours does not have, as an odd rank: then as a plain LoRA
            return None
        if not all(
            _fits(components[c].get_submodule(path), parts, method, config) for (c, path), parts in layers.items()
        ):
            return None  # the plain way finds what is wrong with them
        tensors = {
            f"{component}.{path}.{ours}": parts.tensors[theirs].float()
            for (component, path), parts in layers.items()
            for ours, theirs in form.parameters.items()
        }
        return Imported(method.name, config.model_dump(), {}, tensors, {config.rank: len(layers)})
    return None


def _fits(layer: nn.Module, parts: LayerParts, method: registry.Method, config: registry.MethodConfig) -> bool:
    """Whether a layer's tensors are just those of the method's adapter on it."""
    form = cast(registry.PeftForm, method.peft)
    d_out, d_in = as_matrix(layer).shape
    if config.rank > min(d_out, d_in) or set(parts.tensors) != set(form.parameters.values()):
        return False
    own = dict(method.build(config, d_in, d_out, Generator().manual_seed(0)).named_parameters())
    return all(parts.tensors[theirs].shape == own[ours].shape for ours, theirs in form.parameters.items())
