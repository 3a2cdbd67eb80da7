"""Read another program's adapter files: tensors, metadata and PEFT's settings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic_core
from torch import Tensor

from hra_diffusion.adapters import adapter_file
from hra_diffusion.adapters.adapter_file import PICKLE_SUFFIXES, WEIGHT_NAMES, AdapterFileError
from hra_diffusion.errors import UserError
from hra_diffusion.interop import peft_settings
from hra_diffusion.interop.peft_settings import PeftSettings
from hra_diffusion.models import families


class AdapterImportError(UserError):
    """A file can't be imported."""


@dataclass(frozen=True)
class AdapterSource:
    """Contents of one safetensors file.

    ``settings`` are PEFT's, by component; "" stands for the whole file. ``component`` is "" if unknown. ``in_folder``
    says that the settings come from a PEFT folder.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    settings: dict[str, PeftSettings] = field(default_factory=dict)
    component: str = ""
    in_folder: bool = False


def read_sources(path: Path) -> Iterator[AdapterSource]:
    """Read a file, or the files of a PEFT folder or of one with a PEFT folder per component.

    Raises AdapterImportError for a pickle, a damaged file, or settings that can't be honoured.
    """
    if path.suffix in PICKLE_SUFFIXES:
        raise AdapterImportError(f"{path} is a pickle, which can run code when opened; get it as .safetensors")
    if not path.is_dir():
        yield _read_folder(path) if path.name in WEIGHT_NAMES else _read_file(path)
        return
    if not (files := adapter_file.find_weights(path)):
        raise AdapterImportError(f"{path} contains none of {', '.join(WEIGHT_NAMES)}; give the file itself")
    yield from map(_read_folder, files)


def _read_folder(weights: Path) -> AdapterSource:
    """Read a folder's weights and settings. The folder may be named after its component."""
    config, component = weights.parent / "adapter_config.json", weights.parent.resolve().name
    settings = _read_json(config) if config.is_file() else None
    return _read_file(weights, settings, component if component in families.COMPONENTS else "")


def _from_json(data: bytes) -> Any:
    """Parse JSON. Raises ValueError, also for too much of it and for deep nesting."""
    if len(data) > adapter_file.MAX_METADATA:
        raise ValueError(f"more than {adapter_file.MAX_METADATA / 1e6:.0f} MB")
    return pydantic_core.from_json(data)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            settings = _from_json(file.read(adapter_file.MAX_METADATA + 1))
    except (OSError, ValueError) as error:
        raise AdapterImportError(f"{path} can't be read: {error}; copy the folder again") from None
    if not isinstance(settings, dict):
        raise AdapterImportError(f"{path} is not a JSON object; copy the folder again")
    return settings


def _read_file(path: Path, settings: dict[str, Any] | None = None, component: str = "") -> AdapterSource:
    try:
        with adapter_file.open_safetensors(path) as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("format") == adapter_file.FORMAT:
                raise AdapterImportError(f"{path} is an adapter of hra-diffusion already; use it directly")
            tensors = adapter_file.read_tensors(path, file)
    except AdapterFileError as error:
        raise AdapterImportError(str(error)) from None
    found = {"": settings} if settings else _adapter_metadata(path, metadata)
    try:
        checked = {key: peft_settings.read(value) for key, value in found.items()}
    except peft_settings.SettingsError as error:
        raise AdapterImportError(f"{path}: {error}") from None
    except ValueError as error:
        raise AdapterImportError(f"the settings of {path} are damaged: {error}; get it again") from None
    return AdapterSource(path, tensors, metadata, checked, component, in_folder=bool(settings))


def _adapter_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's settings by component from the metadata that diffusers writes.

    Keys are "unet.lora_alpha" in the file of a pipeline, "lora_alpha" in that of a single model.
    """
    try:
        flat = _from_json(metadata.get("lora_adapter_metadata", "{}").encode())
    except ValueError as error:
        raise AdapterImportError(f"{path} has damaged metadata: lora_adapter_metadata: {error}; get it again") from None
    settings: dict[str, dict[str, Any]] = {}
    for key, value in flat.items() if isinstance(flat, dict) else ():
        component, _, name = key.rpartition(".")
        settings.setdefault(component, {})[name] = value
    return settings
