"""An adapter on a pipeline -> a file that other tools load, with what each of them makes of it.

Every method leaves as ``diag(scale) (W + up · down)``: without a scale that is a plain LoRA, exactly; with one it is a
DoRA, whose magnitude is ``scale · ‖W + up · down‖`` by output. The factors of an orthogonal method depend on W, so the
file is exact on this very base only.
"""

import contextlib
import copy
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment, merging, registry
from hra_diffusion.adapters.adapter_file import AdapterInfo, parameters
from hra_diffusion.adapters.layer import original_weight
from hra_diffusion.adapters.quantization import Quantised
from hra_diffusion.adapters.registry import MIN_SCALE, LowRank
from hra_diffusion.adapters.rotation import ReflectionConfig, Rotation
from hra_diffusion.errors import UserError
from hra_diffusion.files import atomic_path, save_tensors, write_text
from hra_diffusion.interop import checkpoint, key_names, lora_metadata
from hra_diffusion.models import noise
from hra_diffusion.models.noise import NoiseProcess

ROUNDING = 1e-6
"""A relative error below this is float32's, not a cut's."""


class ExportError(UserError):
    """An adapter can't leave in this form: why, and what to do."""


@dataclass(frozen=True)
class Layer:
    """One adapted layer, ready to leave: factors of one rank for all layers, in the layer's shape, float32.

    ``up`` (d_out, r) and ``down`` (r, d_in), of a convolution (c_out, r, 1, 1) and (r, c_in, k, k); ``magnitude``
    (d_out,) or None: DoRA's norm of each output's weight.
    """

    component: str
    path: str
    up: Tensor
    down: Tensor
    magnitude: Tensor | None


@dataclass(frozen=True)
class Exported:
    """What was written. ``form``: "LoRA", "DoRA", the method's own name, or "weights"; ``error`` is the relative
    error ‖ΔW − ΔW written‖ / ‖ΔW‖ over all layers, 0 where the form is exact. For merged weights ``process`` is the
    base's noise process, and for a single file of them ``version`` is "SD 1", "SD 2" or "SDXL"."""

    path: Path
    format: str
    form: str
    rank: int | None
    error: float
    process: NoiseProcess | None = None
    version: str = ""

    @property
    def shape(self) -> str:
        """The form in a word or two: "LoRA of rank 8"."""
        error = f", cut: error {self.error:.1%}" if self.error else ""
        return f"{self.form}{f' of rank {self.rank}' if self.rank else ''}{error}"


def export(
    pipe: DiffusionPipeline,
    name: str,
    format: str,
    path: str | Path,
    strength: float = 1.0,
    lora_rank: int | None = None,
    info: AdapterInfo | None = None,
    sample: Path | None = None,
) -> Exported:
    """Write the adapter ``name`` of a pipeline for other tools; see ``FORMATS``.

    ``strength``: what is written as strength 1; orthogonal methods stay orthogonal at it, which other tools' own
    sliders can't do. ``lora_rank`` asks for a plain LoRA of this rank, cut where it needs more; the error says how much
    was lost. ``info`` (what ``load`` returned) gives the metadata its trigger, number of photos and resolution,
    ``sample``, a picture drawn with the adapter, its thumbnail. Raises UserError for an unknown adapter or format,
    ExportError if the path exists or the form is impossible, or FileError.
    """
    pipeline.require_loaded(pipe, [name])
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}; use one of {', '.join(FORMATS)}")
    if lora_rank is not None and lora_rank < 1:
        raise ExportError(f"the rank must be at least 1, not {lora_rank}")
    return FORMATS[format](ExportJob(pipe, name, strength, lora_rank, info, sample), Path(path))


@dataclass(frozen=True)
class ExportJob:
    """What is to be exported."""

    pipe: DiffusionPipeline
    name: str
    strength: float
    lora_rank: int | None
    info: AdapterInfo | None
    sample: Path | None

    @functools.cached_property
    def parts(self) -> dict[str, nn.Module]:
        """The pipeline's components that the adapter lives on."""
        models = pipeline.components(self.pipe)
        return {name: model for name, model in models.items() if self.name in attachment.adapter_names(model)}

    @functools.cached_property
    def adapters(self) -> dict[tuple[str, str], nn.Module]:
        """The adapter on each layer, by component and path."""
        found = {name: attachment.adapter_layers(model, self.name) for name, model in self.parts.items()}
        return {(name, path): adapter for name, layers in found.items() for path, adapter in layers.items()}

    def layers(self) -> tuple[list[Layer], float]:
        """The layers ready to leave, and the relative error of what had to be cut."""
        if self.lora_rank is None:
            updates, error = {place: self._update(*place) for place in self.adapters}, 0.0
        else:
            cut = {place: _cut(self._change(*place), self.lora_rank) for place in self.adapters}
            updates = {place: update for place, (update, *_) in cut.items()}
            lost, whole = sum(lost for _, lost, _ in cut.values()), sum(whole for *_, whole in cut.values())
            error = (lost / whole) ** 0.5 if whole else 0.0
        rank = max(update.up.shape[1] for update in updates.values())
        layers = [self._layer(component, path, update, rank) for (component, path), update in updates.items()]
        return layers, error if error > ROUNDING else 0.0

    def _adapter(self, component: str, path: str) -> Any:
        """A copy of the adapter on one layer, on the CPU."""
        return copy.deepcopy(self.adapters[component, path]).cpu()

    def _update(self, component: str, path: str) -> LowRank:
        """The adapter on one layer as factors in float64."""
        with torch.no_grad():
            return self._adapter(component, path).low_rank(self._weight(component, path), self.strength)

    def _change(self, component: str, path: str) -> Tensor:
        """W′ − W of one layer in float64."""
        weight = self._weight(component, path)
        with torch.no_grad():
            return self._adapter(component, path).adapted_weight(weight, self.strength) - weight

    def _weight(self, component: str, path: str) -> Tensor:
        """The base's weight of one layer. Raises ExportError where a rotation would turn one stored in fewer bits."""
        layer = self.parts[component].get_submodule(path)
        rotates = any(isinstance(part, Rotation) for part in self.adapters[component, path].modules())
        if rotates and isinstance(layer, Quantised):
            raise ExportError(f"{_method(self).title} turns the base's own weights, and this base's are stored as "
                              f"{layer.kind}; load the base in full precision to export for it")  # fmt: skip
        return original_weight(layer).detach().flatten(1).cpu().double()

    def _layer(self, component: str, path: str, update: LowRank, rank: int) -> Layer:
        magnitude = None
        if update.scale is not None:
            magnitude = (update.scale * (self._weight(component, path) + update.up @ update.down).norm(dim=1)).float()
        up, down = _padded(update, rank)
        layer = self.parts[component].get_submodule(path)
        if isinstance(layer, nn.Conv2d):
            up, down = up[..., None, None], down.unflatten(1, (layer.in_channels, *layer.kernel_size))
        nothing = update.scale is not None and bool((update.scale.abs() <= 3 * MIN_SCALE).any())
        if nothing or not all(t.isfinite().all() for t in (up, down, update.up if magnitude is None else magnitude)):
            raise ExportError(f"{component}.{path} can't be written as a DoRA: an output has magnitude 0; "
                              "export a plain LoRA with --lora-rank, or --format merged")  # fmt: skip
        return Layer(component, path, up, down, magnitude)


def kohya(parcel: ExportJob, path: Path) -> Exported:
    """One .safetensors file with kohya's keys: AUTOMATIC1111, Forge, ComfyUI, InvokeAI, sd-scripts."""
    _require_free(path)
    layers, error = parcel.layers()
    rank = layers[0].down.shape[0]
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        key = key_names.kohya_key(parcel.pipe, layer.component, layer.path)
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = layer.down, layer.up
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
        if layer.magnitude is not None:
            tensors[f"{key}.dora_scale"] = layer.magnitude.reshape(-1, *[1] * (layer.up.ndim - 1))
    facts = lora_metadata.kohya(parcel.pipe, parcel.name, parcel.info, rank, _form(layers) == "DoRA")
    save_tensors(path, tensors, facts | _lora_facts(parcel, tensors))
    return Exported(path, "kohya", _form(layers), rank, error)


def diffusers(parcel: ExportJob, path: Path) -> Exported:
    """diffusers' own LoRA file; a folder gets it under the name diffusers looks for."""
    layers, error = parcel.layers()
    if path.suffix != ".safetensors":
        path = path / "pytorch_lora_weights.safetensors"
    _require_free(path)
    tensors = {}
    for layer in layers:
        key = f"{layer.component}.{key_names.public_path(layer.component, layer.path)}"
        parts = _peft_parts(layer)
        if layer.component != "unet" and layer.magnitude is not None:  # transformers' loader asks for the full name
            parts["lora_magnitude_vector.weight"] = parts.pop("lora_magnitude_vector")
        tensors |= {f"{key}.{part}": tensor for part, tensor in parts.items()}
    save_tensors(path, tensors, {"format": "pt"} | _lora_facts(parcel, tensors))
    return Exported(path, "diffusers", _form(layers), layers[0].down.shape[0], error)


def peft(parcel: ExportJob, path: Path) -> Exported:
    """A folder with one of PEFT's folders for each component; a method that PEFT has stays what it is."""
    _require_free(path)
    method = _method(parcel)
    whole = parcel.strength == 1 and parcel.lora_rank is None and len(_configs(parcel)) == 1
    native = method.peft if whole else None
    layers, error = ([], 0.0) if native else parcel.layers()
    with atomic_path(path) as folder:
        for component, model in parcel.parts.items():
            own = [layer for layer in layers if layer.component == component]
            config, tensors = _native(parcel, component, model) if native else _folded(own)
            save_tensors(folder / component / "adapter_model.safetensors", tensors, {"format": "pt"})
            write_text(folder / component / "adapter_config.json", json.dumps(config, indent=2))
    if native:
        return Exported(path, "peft", method.title, _config(parcel).rank, 0.0)
    return Exported(path, "peft", _form(layers), layers[0].down.shape[0], error)


def merged(parcel: ExportJob, path: Path) -> Exported:
    """The whole base with the adapter in its weights: a .safetensors file in the original layout, else a folder."""
    _require_free(path)
    if parcel.lora_rank is not None:
        raise ExportError("--lora-rank is not for --format merged: the weights hold the adapter whole")
    metadata = {"format": "pt"} | _made_by(parcel)
    process, version = noise.of(cast(Any, parcel.pipe).scheduler), ""
    with contextlib.ExitStack() as stack:
        for model in pipeline.components(parcel.pipe).values():
            here = parcel.name in attachment.adapter_names(model)
            stack.enter_context(merging.temporarily_merged(model, {parcel.name: parcel.strength} if here else {}))
        if path.suffix == ".safetensors":
            version = checkpoint.version(parcel.pipe)
            marks, facts = checkpoint.noise_markers(process)
            with atomic_path(path) as temporary:
                save_file(checkpoint.state_dict(parcel.pipe) | marks, temporary, metadata | facts)
        else:
            with atomic_path(path) as folder:
                parcel.pipe.save_pretrained(folder)
    return Exported(path, "merged", "weights", None, 0.0, process, version)


FORMATS: dict[str, Callable[[ExportJob, Path], Exported]] = {
    "kohya": kohya, "diffusers": diffusers, "peft": peft, "merged": merged,
}  # fmt: skip


def _require_free(path: Path) -> None:
    if path.exists():
        raise ExportError(f"{path} exists already; choose another place with --output")


def _cut(change: Tensor, rank: int) -> tuple[LowRank, float, float]:
    """The best plain LoRA of this rank (by SVD) for a change; with what is lost and the whole, squared norms."""
    U, sizes, V = torch.linalg.svd(change, full_matrices=False)
    root = sizes[:rank].sqrt()
    lost, whole = sizes[rank:].square().sum(), sizes.square().sum()
    return LowRank(U[:, :rank] * root, root[:, None] * V[:rank]), float(lost), float(whole)


def _padded(update: LowRank, rank: int) -> tuple[Tensor, Tensor]:
    """(up, down) with zeros up to ``rank``: mixed ranks are read wrongly by many loaders."""
    missing = rank - update.up.shape[1]
    up = nn.functional.pad(update.up, (0, missing))
    return up.float(), nn.functional.pad(update.down, (0, 0, 0, missing)).float()


def _peft_parts(layer: Layer) -> dict[str, Tensor]:
    parts = {"lora_A.weight": layer.down, "lora_B.weight": layer.up}
    if layer.magnitude is not None:
        parts["lora_magnitude_vector"] = layer.magnitude if layer.up.ndim == 2 else layer.magnitude[None, :, None, None]
    return parts


def _form(layers: list[Layer]) -> str:
    return "LoRA" if all(layer.magnitude is None for layer in layers) else "DoRA"


def _folded(layers: list[Layer]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PEFT's configuration and tensors of a plain LoRA or a DoRA."""
    rank = layers[0].down.shape[0]
    fields = {"r": rank, "lora_alpha": rank, "use_dora": _form(layers) == "DoRA"}
    tensors = {f"base_model.model.{layer.path}.{key}": t for layer in layers for key, t in _peft_parts(layer).items()}
    return _peft_config("LORA", fields, [layer.path for layer in layers]), tensors


def _native(parcel: ExportJob, component: str, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PEFT's configuration and tensors of a method that PEFT has too."""
    form = cast(registry.PeftForm, _method(parcel).peft)
    paths = list(attachment.adapter_layers(model, parcel.name))
    own = {
        key.removeprefix(f"{component}."): tensor for key, tensor in parameters({component: model}, parcel.name).items()
    }
    tensors = {
        f"base_model.model.{path}.{theirs}": _as_peft(model.get_submodule(path), own[f"{path}.{ours}"], theirs)
        for path in paths
        for ours, theirs in form.parameters.items()
    }
    return _peft_config(form.peft_type, form.to_peft(_config(parcel)), paths), tensors


def _as_peft(layer: nn.Module, tensor: Tensor, name: str) -> Tensor:
    """PEFT's factors of a convolution have the convolution's dimensions."""
    if not isinstance(layer, nn.Conv2d) or not name.startswith("lora_"):
        return tensor
    kernel = (layer.in_channels, *layer.kernel_size)
    return tensor.unflatten(1, kernel) if name == "lora_A.weight" else tensor[..., None, None]


def _peft_config(peft_type: str, fields: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    return {"peft_type": peft_type, "target_modules": paths, "inference_mode": True, "task_type": None, **fields}


def _method(parcel: ExportJob) -> registry.Method:
    return registry.get_method(cast(Any, _any_layer(parcel)).method)


def _config(parcel: ExportJob) -> registry.MethodConfig:
    return cast(Any, _any_layer(parcel)).config


def _configs(parcel: ExportJob) -> set[str]:
    """The distinct configurations of the adapter's layers: an imported one may have a rank for each."""
    return {cast(Any, layer).config.model_dump_json() for layer in parcel.adapters.values()}


def _any_layer(parcel: ExportJob) -> nn.Module:
    return next(iter(parcel.adapters.values()))


def _made_by(parcel: ExportJob) -> dict[str, str]:
    """Metadata: what the file was made from."""
    method, options = _method(parcel).name, _config(parcel).model_dump_json()
    facts = {"name": parcel.name, "method": method, "options": options, "strength": str(parcel.strength)}
    made = {
        f"hra_diffusion.{key}": value for key, value in (facts | {"base": pipeline.base_name_of(parcel.pipe)}).items()
    }
    subject = parcel.info.subject if parcel.info else ""
    return made | ({"modelspec.trigger_phrase": subject} if subject else {})


def _lora_facts(parcel: ExportJob, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Metadata of a LoRA or DoRA file in any layout."""
    facts = lora_metadata.base_version(parcel.pipe) | _made_by(parcel)
    if isinstance(_config(parcel), ReflectionConfig):
        base = pipeline.base_name_of(parcel.pipe)
        facts["modelspec.description"] = f"{_method(parcel).title} adapter, exact on {base} at strength 1"
    return facts | lora_metadata.model_spec(parcel.pipe, parcel.name, parcel.info, parcel.sample, tensors)
