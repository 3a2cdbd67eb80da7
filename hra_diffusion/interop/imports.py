"""Import another program's adapter file for a base model, with a report of the keys that were used or skipped.

A file of a method that hra-diffusion shares with PEFT is imported as this method. Otherwise each layer becomes an
equivalent LoRA of its own rank; a dense change has full rank. Changes that depend on the frozen weight (DoRA, OFT, HRA
of odd rank) are exact for the base model of the import.

The shapes of the tensors are compared with the base model's before any are multiplied, so an import takes at most twice
the size of the adapted weights in float32, and a few copies of one layer and of the file in float64.
"""

import contextlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from diffusers import DiffusionPipeline
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_file, registry
from hra_diffusion.adapters.adapter_file import MAX_RANK, WEIGHT_NAMES, AdapterInfo
from hra_diffusion.adapters.fingerprint import layer_probe
from hra_diffusion.adapters.layer import original_weight
from hra_diffusion.adapters.linear_map import matrix_shape
from hra_diffusion.adapters.targets import target_layer
from hra_diffusion.interop import lora_conversion, textual_inversion
from hra_diffusion.interop.adapter_source import AdapterImportError, AdapterSource, read_sources
from hra_diffusion.interop.key_names import LayerPath, public_path
from hra_diffusion.interop.layer_index import LayerIndex, Place, no_layer
from hra_diffusion.interop.layer_tensors import LayerTensors, LayerTensorsError
from hra_diffusion.interop.peft_settings import PeftSettings
from hra_diffusion.models import families
from hra_diffusion.names import cut, validated_name

MAX_KEPT = 300_000
"""Characters of the original file's metadata that an import keeps."""
NOT_TARGETED = "its settings (target_modules, exclude_modules, layers_to_transform) leave this layer out"


@dataclass(frozen=True)
class Report:
    """Which keys of a file were used, and which were skipped."""

    file: str
    keys: int
    layers: dict[str, int]
    """Component -> number of layers."""
    kinds: dict[str, int]
    """Method of the layers ("LoRA", "DoRA", "LoHa", …) -> number of layers."""
    ranks: dict[int, int]
    """Rank -> number of layers."""
    skipped: dict[str, list[str]]
    """Reason -> keys."""
    metadata: dict[str, str]

    @property
    def used(self) -> int:
        """Number of keys that were used."""
        return self.keys - sum(len(keys) for keys in self.skipped.values())

    @property
    def lines(self) -> list[str]:
        """The report as lines of text."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        layers = ", ".join(f"{count} layers of the {component}" for component, count in self.layers.items())
        ranks = ", ".join(f"{rank} ({count})" for rank, count in sorted(self.ranks.items()))
        lines = [f"{self.used} of {self.keys} keys understood: {kinds}; {layers}; rank {ranks}"]
        for reason, keys in self.skipped.items():
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            lines.append(f"skipped, {reason}: {keys[0]}{more}")
        return lines


@dataclass(frozen=True)
class Imported:
    """Another program's adapter converted to a method of hra-diffusion."""

    method: str
    options: dict[str, Any]
    ranks: dict[str, dict[str, int]]
    """Component -> layer -> rank, where it differs from the options."""
    tensors: dict[str, Tensor]
    rank_counts: dict[int, int]
    """Rank -> number of layers."""
    embeddings: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """As in ``AdapterInfo``."""


def import_adapter(
    pipe: DiffusionPipeline, path: str | Path, output: str | Path, name: str, trigger: str = "",
    embeddings: Sequence[Path] = (),
) -> tuple[Path, Report]:  # fmt: skip
    """Convert another program's adapter for the pipeline's base model and save it as ``output/name.safetensors``.

    ``embeddings`` are textual inversion files that were trained with it; those in the file itself are found. Returns
    the saved file and the report. Raises AdapterImportError, FileError, or UserError for an invalid name.
    """
    name = validated_name(name)
    imported, layers, report = parse_adapter(pipe, path, embeddings)
    components = pipeline.components(pipe)
    fingerprint: dict[str, dict[str, float]] = {}
    for component, layer in layers:
        fingerprint.setdefault(component, {})[layer] = layer_probe(target_layer(components[component], layer))
    info = AdapterInfo(
        name=name,
        method=imported.method,
        options=imported.options,
        ranks=imported.ranks,
        base=pipeline.base_name_of(pipe),
        fingerprint=fingerprint,
        embeddings=imported.embeddings,
        targets="imported",
        trigger=trigger or _first_trigger(imported) or report.metadata.get("modelspec.trigger_phrase", ""),
        training={"imported": report.file, "metadata": _kept(report.metadata)},  # type: ignore[typeddict-item]
    )
    file = Path(output) / f"{name}.safetensors"
    adapter_file.save(file, components, info, imported.tensors)
    return file, report


def _first_trigger(imported: Imported) -> str:
    return next((trigger for tokens in imported.embeddings.values() for trigger in tokens), "")


def _kept(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of the original file without its largest entries, such as lists of tags, if they are too many."""
    kept, size = {}, 0
    for key, value in sorted(metadata.items(), key=lambda item: len(item[1])):
        if (size := size + len(key) + len(value)) > MAX_KEPT:
            break
        kept[key] = value
    return kept


def parse_adapter(
    pipe: DiffusionPipeline, path: str | Path, embeddings: Sequence[Path] = ()
) -> tuple[Imported, list[LayerPath], Report]:
    """Convert a file or a PEFT folder for the pipeline's base model, without writing a file.

    Returns the adapter, its layers and the report. Raises AdapterImportError for a damaged file (truncated, NaN, a
    missing factor, inconsistent ranks), another base model, or a file without any known key.
    """
    sources = list(read_sources(Path(path)))
    keys = sum(len(source.tensors) for source in sources)
    words = _embeddings(pipe, sources, embeddings)
    skipped: dict[str, list[str]] = {}
    layers: dict[Place, LayerTensors] = {}
    for source in sources:
        _collect(pipe, source, layers, skipped)
    _check_transformer(pipe, path, skipped)
    if not layers:
        reasons = "; ".join(f"{reason} ({len(keys)} keys)" for reason, keys in skipped.items())
        raise AdapterImportError(
            f"{path} contains no adapter for {pipeline.base_name_of(pipe)}: {reasons or 'it has no tensors'}"
        )
    imported = _convert(pipe, str(path), layers)
    if words:
        tokens, vectors = textual_inversion.imported(pipe, words, _known_triggers(sources), str(path))
        imported = replace(imported, embeddings=tokens, tensors=imported.tensors | vectors)
    own = [layer for place in layers for layer in place.layers]
    report = Report(
        file=Path(path).name,
        keys=keys,
        layers=dict(Counter(component for component, _ in own)),
        kinds=dict(Counter(lora_conversion.kind(tensors) for place, tensors in layers.items() for _ in place.layers)),
        ranks=imported.rank_counts,
        skipped=skipped,
        metadata={key: value for source in sources for key, value in source.metadata.items()},
    )
    return imported, own, report


def _check_transformer(pipe: DiffusionPipeline, path: str | Path, skipped: Mapping[str, list[str]]) -> None:
    """Raise AdapterImportError if the pipeline's transformer lacks a layer of the file.

    Transformers of several bases have some layers of the same names and sizes, such as FLUX.1 and FLUX.2 klein.
    """
    denoiser = families.of(pipe).denoiser
    reason = no_layer(denoiser, pipeline.components(pipe))
    if denoiser != "unet" and reason in skipped:
        keys = skipped[reason]
        base = pipeline.base_name_of(pipe)
        raise AdapterImportError(f"{path} is not for {base}: {reason} ({len(keys)} keys, such as {keys[0]})")


def _embeddings(
    pipe: DiffusionPipeline, sources: Sequence[AdapterSource], files: Sequence[Path]
) -> dict[str, dict[str, Tensor]]:
    """Return the embeddings bundled in the sources, which lose them, and those in textual inversion files, by word."""
    found: dict[str, dict[str, Tensor]] = {}
    for source in sources:
        found |= textual_inversion.take_bundled(pipe, source.tensors)
    for file in files:
        (source,) = read_sources(file)
        found[file.stem] = textual_inversion.read_file(source.tensors)
    return found


def _known_triggers(sources: Sequence[AdapterSource]) -> dict[str, str]:
    """Return the triggers by word that an export of this program states."""
    for source in sources:
        with contextlib.suppress(ValidationError):
            return TypeAdapter(dict[str, str]).validate_json(source.metadata.get(textual_inversion.TRIGGERS, ""))
    return {}


def name_for(file: Path) -> str:
    """An adapter name made from a file name, with letters, digits, - and _ only."""
    stem = unicodedata.normalize("NFC", file.parent.name if file.name in WEIGHT_NAMES else file.stem)
    return cut(re.sub(r"\W+", "-", stem).strip("-_")) or "imported"


def _collect(
    pipe: DiffusionPipeline, source: AdapterSource, layers: dict[Place, LayerTensors], skipped: dict[str, list[str]]
) -> None:
    """Sort a file's tensors into ``layers`` by place and part, and the other keys into ``skipped`` by reason.

    Raises AdapterImportError if two keys name the same tensor.
    """
    index = LayerIndex(pipe, source.component, list(source.tensors), source.metadata)
    for key, tensor in source.tensors.items():
        found = index.find(key)
        if not isinstance(found, str) and _is_left_out(pipe, source, found[0].layers[0], index.name_of(key)):
            found = NOT_TARGETED
        if isinstance(found, str):
            skipped.setdefault(found, []).append(key)
            continue
        place, part = found
        if place not in layers:
            layers[place] = LayerTensors({}, _layer_settings(source, place.layers[0], index.name_of(key)))
        by_part = layers[place].by_part
        if part in by_part:
            raise AdapterImportError(f"{source.path} names {place} twice ({key}); get the file again")
        by_part[part] = tensor


def _is_left_out(pipe: DiffusionPipeline, source: AdapterSource, layer: LayerPath, name: str) -> bool:
    """Whether the settings of a PEFT folder exclude a layer, named ``name`` in the file, so that PEFT ignores it."""
    if not source.in_folder:
        return False
    component, path = layer
    return not source.settings[""].targets(name, target_layer(pipeline.components(pipe)[component], path))


def _layer_settings(source: AdapterSource, layer: LayerPath, name: str) -> PeftSettings | None:
    """PEFT's settings for a layer. Patterns may use its name in the file or in any version of transformers."""
    settings = source.settings.get("", source.settings.get(layer[0]))
    return settings and settings.of_layer([name, layer[1], public_path(*layer)])


def _convert(pipe: DiffusionPipeline, file: str, layers: Mapping[Place, LayerTensors]) -> Imported:
    """Convert layers to the method that they share with PEFT, or else to a LoRA with a rank per layer."""
    components = pipeline.components(pipe)
    whole = {place.layers[0]: own for place, own in layers.items() if len(place.layers) == 1 and not place.swapped}
    if len(whole) == len(layers) and (native := _as_peft_method(whole, components)):
        return native
    tensors: dict[str, Tensor] = {}
    sizes: dict[LayerPath, int] = {}
    for place, layer_tensors in layers.items():
        weights = [original_weight(target_layer(components[c], path)).detach() for c, path in place.layers]
        try:
            factors = lora_conversion.to_loras(weights, layer_tensors, place.swapped)
        except LayerTensorsError as error:
            raise AdapterImportError(f"{file}: {place}: {error}") from None
        for (component, path), (up, down) in zip(place.layers, factors, strict=True):
            if (component, path) in sizes:
                raise AdapterImportError(f"{file} names {component}.{path} twice; get the file again")
            tensors |= {f"{component}.{path}.up": up, f"{component}.{path}.down": down}
            sizes[component, path] = len(down)
    usual = min(Counter(sizes.values()).most_common(1)[0][0], MAX_RANK)
    ranks: dict[str, dict[str, int]] = {}
    for (component, path), rank in sizes.items():
        if rank != usual:
            ranks.setdefault(component, {})[path] = rank
    return Imported("lora", {"rank": usual}, ranks, tensors, dict(Counter(sizes.values())))


def _as_peft_method(layers: Mapping[LayerPath, LayerTensors], components: Mapping[str, nn.Module]) -> Imported | None:
    """Convert a PEFT folder to the same method here, or return None if there is none or the tensors don't match."""
    if (settings := next(iter(layers.values())).settings) is None:
        return None
    for method in map(registry.get_method, registry.method_names()):
        form = method.peft
        if not form or not form.from_peft or form.peft_type != settings.peft_type:
            continue
        try:
            config = method.parse(form.from_peft(settings.model_dump()))
        except ValueError:  # unsupported options, such as an odd rank: import as a LoRA
            return None
        if not all(
            _fits(target_layer(components[c], path), tensors, method, config) for (c, path), tensors in layers.items()
        ):
            return None  # the conversion to LoRA reports what is wrong
        tensors = {
            f"{component}.{path}.{ours}": layer_tensors.by_part[theirs].float()
            for (component, path), layer_tensors in layers.items()
            for ours, theirs in form.parameters.items()
        }
        return Imported(method.name, config.model_dump(), {}, tensors, {config.rank: len(layers)})
    return None


def _fits(layer: nn.Module, tensors: LayerTensors, method: registry.Method, config: registry.MethodConfig) -> bool:
    """Whether a layer's tensors are exactly those of the method's adapter for the layer."""
    form = cast(registry.PeftForm, method.peft)
    d_out, d_in = matrix_shape(layer)
    if config.rank > min(d_out, d_in) or set(tensors.by_part) != set(form.parameters.values()):
        return False
    own = method.shapes(config, d_in, d_out)
    return all(tensors.by_part[theirs].shape == own[ours] for ours, theirs in form.parameters.items())
