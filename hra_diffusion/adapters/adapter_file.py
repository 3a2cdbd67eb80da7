"""The adapter file: one safetensors file with the parameters and metadata of one adapter.

Tensors are named ``{component}.{layer path}.{parameter}`` ("unet.….to_q.right.u"). Everything else about the adapter is
in the file's metadata.
"""

import contextlib
import shlex
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hra_diffusion.adapters import adapter_keys, attachment, registry
from hra_diffusion.adapters.fingerprint import adapter_fingerprint
from hra_diffusion.errors import UserError
from hra_diffusion.files import has_changed, save_tensors

FORMAT = "hra-diffusion"
FORMAT_VERSION = 1
WEIGHT_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""File names of the weights in an adapter folder of PEFT and of diffusers."""
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
"""Suffixes of files that can run code when they are opened."""
IMPORT_COMMAND = "hra-diffusion import"
MAX_RANK = 256
"""Largest rank in an adapter's options. Layers of a larger rank are listed in ``AdapterInfo.ranks``."""


class AdapterFileError(UserError):
    """An adapter file can't be used."""


class AdapterInfo(BaseModel):
    """Metadata of an adapter file."""

    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="strings")

    name: str
    method: str
    options: dict[str, Any] = Field(description="The method's configuration.")
    base: str = Field(description="Name of the base model at the time of training.")
    fingerprint: dict[str, dict[str, float]] = Field(description="Component -> layer -> probe of the frozen weight.")
    ranks: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="Component -> layer -> rank, where it differs from the options."
    )
    prediction_type: str = Field(default="", description='What the base model\'s UNet predicts; "" if unknown.')
    zero_snr: bool | None = Field(
        default=None, description="Whether the base model's noise schedule has zero terminal SNR."
    )
    targets: str = "attention"
    trigger: str = ""
    class_noun: str = ""
    training: dict[str, Any] = Field(
        default_factory=dict, description="Record of the training: steps, learning rates, seconds."
    )

    @field_validator("name")
    @classmethod
    def _normalize(cls, name: str) -> str:
        return unicodedata.normalize("NFC", name)

    @property
    def subject(self) -> str:
        """The subject's name in prompts: "sks dog"."""
        return f"{self.trigger} {self.class_noun}".strip()


def save(
    path: Path, components: Mapping[str, nn.Module], info: AdapterInfo, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapter ``info.name`` of these components, or the given tensors, to a file atomically.

    Raises FileError if the file can't be written.
    """
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "adapter": info.model_dump_json()}
    save_tensors(path, tensors or parameters(components, info.name), metadata, checksum=True)


def parameters(components: Mapping[str, nn.Module], name: str) -> dict[str, nn.Parameter]:
    """All parameters of one adapter as ``{component}.{layer path}.{parameter}``."""
    return {
        f"{component}.{key}": parameter
        for component, model in components.items()
        if name in attachment.adapter_names(model)
        for key, parameter in attachment.adapter_parameters(model, name).items()
    }


def read_info(path: Path) -> AdapterInfo:
    """Read the metadata of an adapter file without its tensors. Raises AdapterFileError for any other file."""
    with open_safetensors(path) as file:
        return _parse_info(path, file)


def is_adapter_file(path: Path) -> bool:
    """Whether a file is marked as an adapter of this project. Raises AdapterFileError for a damaged file."""
    with open_safetensors(path) as file:
        return (file.metadata() or {}).get("format") == FORMAT


def find_weights(folder: Path) -> list[Path]:
    """The weight files of an adapter folder of PEFT or diffusers, or of its subfolders, one per component."""
    folders = [folder, *sorted(folder.iterdir())]
    found = (next((place / name for name in WEIGHT_NAMES if (place / name).is_file()), None) for place in folders)
    return [file for file in found if file]


def read(path: Path) -> tuple[AdapterInfo, dict[str, Tensor]]:
    """Read an adapter file. Raises AdapterFileError if it is damaged or a tensor is not finite.

    Files of earlier versions have no checksum that would show a changed tensor.
    """
    with open_safetensors(path) as file:
        info = _parse_info(path, file)
        if has_changed(path, file.metadata()):
            raise AdapterFileError(
                f"{path} does not match its checksum: it is damaged, or another program has changed it; copy it again "
                "or use another checkpoint"
            )
        # copies: Windows can't replace a file while tensors are mapped to it
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (not a dict)
    if bad := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise AdapterFileError(f"{path} contains NaN or infinite values in {bad[0]}; use an earlier checkpoint")
    return info, tensors


def rewrite_info(path: Path, info: AdapterInfo) -> None:
    """Replace the metadata of an adapter file. Its tensors don't change."""
    _, tensors = read(path)
    save(path, {}, info, tensors)


def attached_info(components: Mapping[str, nn.Module], name: str, **fields: Any) -> AdapterInfo:
    """The metadata of an attached adapter; ``fields`` are those that the models don't provide (base, trigger, …)."""
    adapters = {
        component: attachment.adapter_layers(model, name)
        for component, model in components.items()
        if name in attachment.adapter_names(model)
    }
    adapter = next(iter(next(iter(adapters.values())).values()))
    fields.setdefault("fingerprint", adapter_fingerprint(components, name))
    options = adapter.config.model_dump(exclude={"dropout"}) | {"rank": min(adapter.config.rank, MAX_RANK)}
    ranks = {
        component: {path: layer.config.rank for path, layer in layers.items() if layer.config.rank != options["rank"]}
        for component, layers in adapters.items()
    }
    return AdapterInfo(name=name, method=adapter.method, options=options, ranks=ranks, **fields)


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Context manager that opens a safetensors file. Raises AdapterFileError if it is missing or unreadable."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise AdapterFileError(f"no adapter file {path}") from None
    except OSError as error:
        raise AdapterFileError(f"{path} can't be read: {error.strerror or error}") from None
    except SafetensorError as error:
        if path.suffix in PICKLE_SUFFIXES:
            raise AdapterFileError(
                f"{path} is a pickle, which can run code when opened; get it as .safetensors, then import it with "
                f"{IMPORT_COMMAND}"
            ) from None
        raise AdapterFileError(
            f"{path} is not a complete safetensors file ({error}); copy it again or use another checkpoint"
        ) from None


def _parse_info(path: Path, file: Any) -> AdapterInfo:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        if adapter_keys.has_adapter_keys(file.keys()):
            raise AdapterFileError(
                f"{path} is another program's adapter; import it with {IMPORT_COMMAND} {shlex.quote(str(path))}"
            )
        raise AdapterFileError(f"{path} is a safetensors file, but not an adapter of hra-diffusion")
    version = metadata.get("format_version", "")
    if not version.isdecimal():
        raise AdapterFileError(f"{path} has damaged metadata: format version {version!r}; copy it again")
    if int(version) > FORMAT_VERSION:
        raise AdapterFileError(
            f"{path} has format version {version}, newer than {FORMAT_VERSION}; update hra-diffusion"
        )
    try:
        return AdapterInfo.model_validate_json(metadata.get("adapter", ""))
    except ValidationError as error:
        raise AdapterFileError(f"{path} has damaged metadata: {registry.explain(error)}") from None
