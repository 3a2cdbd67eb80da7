"""Export an adapter on a pipeline, or several as one, to a file that other programs load."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment, merging, quantization
from hra_diffusion.adapters.adapter_file import AdapterInfo, parameters
from hra_diffusion.adapters.block_rotation import BlockConfig
from hra_diffusion.adapters.registry import PeftForm
from hra_diffusion.adapters.rotation import ReflectionConfig
from hra_diffusion.adapters.state import Fusion
from hra_diffusion.adapters.targets import target_layer
from hra_diffusion.files import atomic_path, save_tensors, write_text
from hra_diffusion.interop import checkpoint, lora_metadata, textual_inversion
from hra_diffusion.interop.export_job import ExportError, ExportJob, ExportLayer
from hra_diffusion.interop.key_names import kohya_key, public_path
from hra_diffusion.interop.transformer_keys import original_layers
from hra_diffusion.models import families, noise
from hra_diffusion.models.noise import NoiseProcess


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    ``form`` is "LoRA", "DoRA", the method's own name, or "weights". ``error`` is the relative error
    ‖ΔW − ΔW written‖ / ‖ΔW‖ over all layers, 0 if exact. For a merged single file ``process`` is the base model's noise
    process, and ``version`` is "SD 1", "SD 2" or "SDXL". ``embeddings`` are textual inversion files
    with the trained embeddings of the adapter's triggers; ``bundled`` says whether they are in the file instead.
    ``family`` is that of the base model.
    """

    path: Path
    format: str
    form: str
    rank: int | None
    error: float
    process: NoiseProcess | None = None
    version: str = ""
    embeddings: tuple[Path, ...] = ()
    bundled: bool = False
    family: str = ""

    @property
    def shape(self) -> str:
        """Short description of the form: "LoRA of rank 8"."""
        error = f", truncated: error {self.error:.1%}" if self.error else ""
        return f"{self.form}{f' of rank {self.rank}' if self.rank else ''}{error}"


def export(
    pipe: DiffusionPipeline,
    name: str | Mapping[str, float],
    format: str,
    path: str | Path,
    strength: float = 1.0,
    lora_rank: int | None = None,
    info: AdapterInfo | None = None,
    sample: Path | None = None,
    bundle_embeddings: bool = False,
    fusion: Fusion = "compose",
) -> Exported:
    """Export the adapter ``name`` of a pipeline for other programs, or several adapters as one.

    Args:
        name: A name, or the strengths of several adapters by name. Their ranks add up.
        format: A key of ``FORMATS``.
        strength: Strength of the one adapter that becomes strength 1 of the export. Orthogonal methods stay orthogonal
            at any strength here, but not with the strength of other programs.
        lora_rank: Export a plain LoRA of this rank, truncated if necessary; ``Exported.error`` is the loss.
        info: Metadata of the adapter, as returned by ``load``, for the trigger, number of photos and resolution.
        sample: An image generated with the adapter, for the thumbnail.
        bundle_embeddings: Write trained embeddings of the trigger into kohya's file, for AUTOMATIC1111 and Forge,
            instead of beside it. diffusers refuses such a file.
        fusion: How several adapters act together, see ``pipeline.activate``.

    Raises UserError for an unknown adapter and for adapters that can't be fused, ExportError for an unknown format, an
    existing file or an impossible form, and FileError if a file can't be written. Existing files are found before
    anything is written.
    """
    strengths = {name: strength} if isinstance(name, str) else dict(name)
    pipeline.require_fusable(pipe, strengths, fusion)
    strengths = dict(sorted(strengths.items())) if fusion == "geodesic" else strengths  # as when they are active
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}; use one of {', '.join(FORMATS)}")
    if lora_rank is not None and lora_rank < 1:
        raise ExportError(f"the rank must be at least 1, not {lora_rank}")
    if bundle_embeddings and format != "kohya":
        raise ExportError("--bundle-embeddings is for --format kohya; other formats get a file beside them")
    job = ExportJob(pipe, strengths, fusion, lora_rank, info, sample, bundle_embeddings)
    _check_components(job, format)
    path, embeddings = _free_paths(job, format, Path(path))
    done = FORMATS[format](job, path)
    for adapter, triggers in embeddings.items():
        textual_inversion.write(pipe, adapter, strengths[adapter], triggers)
    files = tuple(file for triggers in embeddings.values() for file in triggers)
    bundled = bundle_embeddings and any(textual_inversion.words(pipe, adapter) for adapter in strengths)
    return replace(done, embeddings=files, bundled=bundled, family=families.of(pipe).name)


def kohya(job: ExportJob, path: Path) -> Exported:
    """A .safetensors file with kohya's keys, for AUTOMATIC1111, Forge, ComfyUI, InvokeAI and sd-scripts."""
    layers, error = job.layers()
    rank = layers[0].down.shape[0]
    tensors: dict[str, Tensor] = {}
    for key, layer in _kohya_layers(job, layers).items():
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = layer.down, layer.up
        tensors[f"{key}.alpha"] = torch.tensor(float(layer.down.shape[0]))
        if layer.magnitude is not None:
            tensors[f"{key}.dora_scale"] = layer.magnitude.reshape(-1, *[1] * (layer.up.ndim - 1))
    if job.bundle_embeddings:
        for adapter in job.strengths.items():
            tensors |= textual_inversion.bundle(job.pipe, *adapter)
    facts = lora_metadata.kohya(job.pipe, job.name, job.info, rank, _form(layers) == "DoRA")
    save_tensors(path, tensors, facts | _lora_metadata(job, tensors))
    return Exported(path, "kohya", _form(layers), rank, error)


def diffusers(job: ExportJob, path: Path) -> Exported:
    """diffusers' LoRA file. In a folder it gets the name that diffusers looks for."""
    layers, error = job.layers()
    tensors = {}
    for layer in layers:
        key = f"{layer.component}.{public_path(layer.component, layer.path)}"
        parts = _peft_parts(layer)
        in_text_encoder = layer.component.startswith("text_encoder")
        if in_text_encoder and layer.magnitude is not None:  # as transformers' loader expects
            parts["lora_magnitude_vector.weight"] = parts.pop("lora_magnitude_vector")
        tensors |= {f"{key}.{part}": tensor for part, tensor in parts.items()}
    save_tensors(path, tensors, {"format": "pt"} | _lora_metadata(job, tensors))
    return Exported(path, "diffusers", _form(layers), layers[0].down.shape[0], error)


def peft(job: ExportJob, path: Path) -> Exported:
    """A folder with a PEFT folder per component. A method that PEFT has is exported as this method."""
    native = job.native_peft
    layers, error = ([], 0.0) if native else job.layers()
    with atomic_path(path) as folder:
        for component, model in job.components.items():
            own = [layer for layer in layers if layer.component == component]
            config, tensors = _native_peft(job, component, model, native) if native else _lora_peft(own)
            save_tensors(folder / component / "adapter_model.safetensors", tensors, {"format": "pt"})
            write_text(folder / component / "adapter_config.json", json.dumps(config, indent=2))
    if native:
        return Exported(path, "peft", job.title, job.configs[0].rank, 0.0)
    return Exported(path, "peft", _form(layers), layers[0].down.shape[0], error)


def merged(job: ExportJob, path: Path) -> Exported:
    """The base model with the adapter merged: a .safetensors file in the original layout, or else a folder."""
    if quantization.storage(families.denoiser(job.pipe)) != "full":
        raise ExportError(
            "the base's weights are quantised; load the base in full precision to save it with the adapter"
        )
    if job.lora_rank is not None:
        raise ExportError("--lora-rank can't be used with --format merged, which is always exact")
    metadata = {"format": "pt"} | _provenance(job)
    single, process, version = path.suffix == ".safetensors", None, ""
    markers, facts = dict[str, Tensor](), dict[str, str]()
    if single:
        version, process = checkpoint.version(job.pipe), noise.of(cast(Any, job.pipe).scheduler)
        markers, facts = checkpoint.noise_markers(process)
    with contextlib.ExitStack() as stack:
        for model in pipeline.components(job.pipe).values():
            own = pipeline.strengths_on(model, job.strengths)
            stack.enter_context(merging.temporarily_merged(model, own, job.fusion))
        if single:
            with atomic_path(path) as temporary, _disk_errors():
                save_file(checkpoint.state_dict(job.pipe) | markers, temporary, metadata | facts)
        else:
            with atomic_path(path) as folder, _disk_errors():
                job.pipe.save_pretrained(folder)
    return Exported(path, "merged", "weights", None, 0.0, process, version)


FORMATS: dict[str, Callable[[ExportJob, Path], Exported]] = {
    "kohya": kohya, "diffusers": diffusers, "peft": peft, "merged": merged,
}  # fmt: skip


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Within the block, turn errors of safetensors about the disk into OSError."""
    try:
        yield
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise


def _check_components(job: ExportJob, format: str) -> None:
    """Raise ExportError if a format has no names for layers of a component."""
    named = dict(families.of(job.pipe).kohya_prefixes)
    if format in ("kohya", "diffusers") and (missing := [name for name in job.components if name not in named]):
        raise ExportError(
            f"no program reads layers of this base's {missing[0]} from a {format} file; use --format peft"
        )


def _free_paths(job: ExportJob, format: str, path: Path) -> tuple[Path, dict[str, dict[Path, str]]]:
    """Return the path to write, and by adapter the trigger of each textual inversion file by its path.

    Raises ExportError if one of them exists.
    """
    is_file = path.suffix == ".safetensors"
    if format == "diffusers" and not is_file:
        path = path / "pytorch_lora_weights.safetensors"
    folder = path if format == "peft" or (format == "merged" and not is_file) else path.parent
    adapters = () if job.bundle_embeddings else job.strengths
    embeddings = {name: textual_inversion.files(job.pipe, name, folder) for name in adapters}
    files = [file for triggers in embeddings.values() for file in triggers]
    for file in (path, *files):
        if file.exists():
            other = "path" if file == path else "folder"
            raise ExportError(f"{file} exists already; choose another {other} with --output")
    if path in files:
        raise ExportError(f"{path} is the file of the trained embedding; choose another path with --output")
    return path, embeddings


def _kohya_layers(job: ExportJob, layers: list[ExportLayer]) -> dict[str, ExportLayer]:
    """kohya's name -> layer. In a transformer's original layout, q, k and v are one layer of the sum of their ranks."""
    own = {(layer.component, layer.path): layer for layer in layers}
    named = {}
    for component, model in job.components.items():
        for original in original_layers(model):
            parts = [own.pop((component, path), None) for path in original.paths]
            if any(parts):
                named[kohya_key(job.pipe, component, original.name)] = job.as_one(component, original, parts)
    return named | {kohya_key(job.pipe, *key): layer for key, layer in own.items()}


def _form(layers: list[ExportLayer]) -> str:
    return "LoRA" if all(layer.magnitude is None for layer in layers) else "DoRA"


def _peft_parts(layer: ExportLayer) -> dict[str, Tensor]:
    parts = {"lora_A.weight": layer.down, "lora_B.weight": layer.up}
    if layer.magnitude is not None:
        parts["lora_magnitude_vector"] = layer.magnitude if layer.up.ndim == 2 else layer.magnitude[None, :, None, None]
    return parts


def _lora_peft(layers: list[ExportLayer]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PEFT's configuration and tensors of a LoRA or a DoRA."""
    rank = layers[0].down.shape[0]
    fields = {"r": rank, "lora_alpha": rank, "use_dora": _form(layers) == "DoRA"}
    tensors = {f"base_model.model.{layer.path}.{key}": t for layer in layers for key, t in _peft_parts(layer).items()}
    return _peft_config("LORA", fields, [layer.path for layer in layers]), tensors


def _native_peft(
    job: ExportJob, component: str, model: nn.Module, form: PeftForm
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PEFT's configuration and tensors of a method that PEFT has too."""
    paths = list(attachment.adapter_layers(model, job.name))
    own = {
        key.removeprefix(f"{component}."): tensor for key, tensor in parameters({component: model}, job.name).items()
    }
    tensors = {
        f"base_model.model.{path}.{theirs}": _peft_shape(target_layer(model, path), own[f"{path}.{ours}"], theirs)
        for path in paths
        for ours, theirs in form.parameters.items()
    }
    return _peft_config(form.peft_type, form.to_peft(job.configs[0]), paths), tensors


def _peft_shape(layer: nn.Module, tensor: Tensor, name: str) -> Tensor:
    """Give the factors of a convolution the convolution's dimensions, as in PEFT."""
    if not isinstance(layer, nn.Conv2d) or not name.startswith("lora_"):
        return tensor
    kernel = (layer.in_channels, *layer.kernel_size)
    return tensor.unflatten(1, kernel) if name == "lora_A.weight" else tensor[..., None, None]


def _peft_config(peft_type: str, fields: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    return {"peft_type": peft_type, "target_modules": paths, "inference_mode": True, "task_type": None, **fields}


def _provenance(job: ExportJob) -> dict[str, str]:
    """Metadata of the adapter, or the adapters, that the file was exported from."""
    facts = {"name": job.name}
    if len(job.strengths) == 1:
        ((adapter, strength),) = next(iter(job.adapters.values()))
        facts |= {"method": adapter.method, "options": adapter.config.model_dump_json(), "strength": str(strength)}
    else:
        facts |= {"adapters": json.dumps(job.strengths), "fusion": job.fusion}
    provenance = {
        f"hra_diffusion.{key}": value for key, value in (facts | {"base": pipeline.base_name_of(job.pipe)}).items()
    }
    subject = job.info.subject if job.info else ""
    return provenance | ({"modelspec.trigger_phrase": subject} if subject else {})


def _lora_metadata(job: ExportJob, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Metadata of a LoRA or DoRA file in any layout."""
    facts = lora_metadata.base_version(job.pipe) | _provenance(job)
    if any(isinstance(config, ReflectionConfig | BlockConfig) for config in job.configs):
        base = pipeline.base_name_of(job.pipe)
        facts["modelspec.description"] = f"{job.title} adapter, exact on {base} at strength 1"
    facts |= textual_inversion.metadata(job.pipe, job.strengths)
    return facts | lora_metadata.model_spec(job.pipe, job.name, job.info, job.sample, tensors)
