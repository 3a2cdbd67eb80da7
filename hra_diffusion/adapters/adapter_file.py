"""One safetensors file <-> the adapters on a model's components.

Tensors are named ``{component}.{layer path}.{parameter}`` ("unet.….to_q.right.u"); everything else about the adapter is
in the file's metadata. Loading believes nothing: every layer, shape and version is checked before anything is attached.
"""

import contextlib
import shlex
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hra_diffusion.adapters import adapter_keys, attachment, registry
from hra_diffusion.adapters.layer import AdapterState, probe_of
from hra_diffusion.errors import Note, UserError
from hra_diffusion.files import save_tensors

FORMAT = "hra-diffusion"
FORMAT_VERSION = 1
FINGERPRINT_TOLERANCE = 5e-3
"""RMS distance of two fingerprints above which the weights differ by more than rounding to bfloat16 (about 1e-3)."""

WEIGHTS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""How PEFT and diffusers call the weights in an adapter's folder."""
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Suffixes of files that can run code when they are opened."""
IMPORT = "hra-diffusion import"
"""The command for other programs' adapters."""
MAX_RANK = 256
"""The largest rank that an adapter's options may name; layers of a larger one are listed one by one."""


class AdapterFileError(UserError):
    """An adapter file can't be used: what is wrong with it, and what to do."""


class AdapterInfo(BaseModel):
    """What an adapter file says of itself."""

    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="strings")

    name: str
    method: str
    options: dict[str, Any] = Field(description="The method's configuration.")
    base: str = Field(description="The base model it was trained on, as named then.")
    fingerprint: dict[str, dict[str, float]] = Field(description="Component -> layer -> probe of the frozen weight.")
    ranks: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="Component -> layer -> rank, where it is not that of the options."
    )
    prediction_type: str = Field(default="", description='What that base\'s UNet predicts; "" if it is not known.')
    zero_snr: bool | None = Field(default=None, description="Whether that base's noise ends in zero terminal SNR.")
    targets: str = "attention"
    trigger: str = ""
    class_noun: str = ""
    training: dict[str, Any] = Field(default_factory=dict, description="How it was trained: steps, rates, seconds.")

    @field_validator("name")
    @classmethod
    def _compose(cls, name: str) -> str:
        return unicodedata.normalize("NFC", name)

    @property
    def subject(self) -> str:
        """How prompts call the subject: "sks dog"."""
        return f"{self.trigger} {self.class_noun}".strip()


def save(
    path: Path, components: Mapping[str, nn.Module], info: AdapterInfo, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapter ``info.name`` of these components (or ``state``, its parameters by key) to one file, whole.

    Raises FileError when the file can't be written.
    """
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "adapter": info.model_dump_json()}
    save_tensors(path, state or parameters(components, info.name), metadata)


def parameters(components: Mapping[str, nn.Module], name: str) -> dict[str, nn.Parameter]:
    """All parameters of one adapter as ``{component}.{layer path}.{parameter}``."""
    return {
        f"{component}.{key}": parameter
        for component, model in components.items()
        if name in attachment.adapter_names(model)
        for key, parameter in attachment.adapter_parameters(model, name).items()
    }


def read_info(path: Path) -> AdapterInfo:
    """The metadata of an adapter file, read without its tensors. Raises AdapterFileError for any that is not ours."""
    with opened(path) as file:
        return _info(path, file)


def is_ours(path: Path) -> bool:
    """Whether a file says that it is an adapter of this project. Raises AdapterFileError for one that is not whole."""
    with opened(path) as file:
        return (file.metadata() or {}).get("format") == FORMAT


def weights_in(folder: Path) -> list[Path]:
    """The weights in a folder of PEFT's or diffusers', or in one such for each component within it."""
    places = [folder, *sorted(folder.iterdir())]
    found = (next((place / name for name in WEIGHTS if (place / name).is_file()), None) for place in places)
    return [file for file in found if file]


def check(path: Path) -> AdapterInfo:
    """The metadata of a file all of whose tensors are there and finite. Raises AdapterFileError for any other."""
    return _read(path)[0]


def rewrite(path: Path, info: AdapterInfo) -> None:
    """Replace what the file says of itself; its tensors stay."""
    _, tensors = _read(path)
    save(path, {}, info, tensors)


def info_of(components: Mapping[str, nn.Module], name: str, **facts: Any) -> AdapterInfo:
    """The metadata of an attached adapter; ``facts`` are the fields a model can't know (base, trigger, …)."""
    model = next(model for model in components.values() if name in attachment.adapter_names(model))
    layer: Any = next(iter(attachment.adapter_layers(model, name).values()))
    facts.setdefault("fingerprint", fingerprint(components, name))
    options = layer.config.model_dump() | {"rank": min(layer.config.rank, MAX_RANK)}
    ranks = {
        component: {path: layer.config.rank for path, layer in layers if layer.config.rank != options["rank"]}
        for component, layers in _layers(components, name)
    }
    return AdapterInfo(name=name, method=layer.method, options=options, ranks=ranks, **facts)


def _layers(components: Mapping[str, nn.Module], name: str) -> list[tuple[str, list[tuple[str, Any]]]]:
    return [
        (component, list(attachment.adapter_layers(model, name).items()))
        for component, model in components.items()
        if name in attachment.adapter_names(model)
    ]


def load(path: Path, components: Mapping[str, nn.Module], name: str | None = None) -> AdapterInfo:
    """Attach the adapter in ``path`` to the components it was trained on, under ``name`` (its own by default).

    Raises AdapterFileError, with the components untouched, for a file that is not whole, a newer format, an adapter of
    another base (missing or extra layers, wrong shapes). Warns if the base's weights are of the right shape but not
    those it was trained on.
    """
    info, tensors = _read(path)
    info = info.model_copy(update={"name": name or info.name})
    _check_layers(path, info, components)
    before = {model: (attachment.state_of(model) or AdapterState()).mix for model in components.values()}
    try:
        for component, probes in info.fingerprint.items():
            attachment.attach(
                components[component],
                info.method,
                info.options,
                name=info.name,
                targets=list(probes),
                ranks=info.ranks.get(component),
            )
        _copy_in(path, tensors, parameters(components, info.name), info)
    except ValueError as error:
        unload(components, info.name)
        for model, mix in before.items():
            attachment.activate(model, dict(mix))
        raise error if isinstance(error, AdapterFileError) else AdapterFileError(f"{path}: {error}") from None
    _compare_fingerprint(path, info, components)
    return info


def unload(components: Mapping[str, nn.Module], name: str) -> None:
    """Detach the adapter from every component that has it."""
    for model in components.values():
        if name in attachment.adapter_names(model):
            attachment.detach(model, name)


def fingerprint(components: Mapping[str, nn.Module], name: str) -> dict[str, dict[str, float]]:
    """A probe of every weight the adapter lives on: ``⟨W, p⟩ / ‖W‖`` for a fixed pattern p of unit RMS.

    Rounding W to float16 or bfloat16 moves a probe by about 1e-3 at most, fine-tuning the base by more.
    """
    return {
        component: {path: probe_of(model.get_submodule(path)) for path in attachment.adapter_layers(model, name)}
        for component, model in components.items()
        if name in attachment.adapter_names(model)
    }


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file for reading. Raises AdapterFileError for one that is missing, unreadable or not whole."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise AdapterFileError(f"no adapter file {path}") from None
    except OSError as error:
        raise AdapterFileError(f"{path} can't be read: {error.strerror or error}") from None
    except SafetensorError as error:
        if path.suffix in PICKLES:
            raise AdapterFileError(
                f"{path} is a pickle, which can run code when opened; get it as .safetensors, then bring it in with "
                f"{IMPORT}"
            ) from None
        raise AdapterFileError(
            f"{path} is not a whole safetensors file ({error}); copy it again or take another checkpoint"
        ) from None


def _info(path: Path, file: Any) -> AdapterInfo:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        if adapter_keys.of_adapter(file.keys()):
            raise AdapterFileError(
                f"{path} is another program's adapter; bring it in with {IMPORT} {shlex.quote(str(path))}"
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


def _read(path: Path) -> tuple[AdapterInfo, dict[str, Tensor]]:
    with opened(path) as file:
        info = _info(path, file)
        # copies: tensors that stay mapped to the file would keep Windows from replacing it
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (not a dict)
    if bad := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise AdapterFileError(f"{path} holds NaN or infinite values in {bad[0]}; take an earlier checkpoint")
    return info, tensors


def _check_layers(path: Path, info: AdapterInfo, components: Mapping[str, nn.Module]) -> None:
    for component, probes in info.fingerprint.items():
        if component not in components:
            raise AdapterFileError(f"{path} is for another base ({info.base}): this one has no {component}")
        if (routing := attachment.state_of(components[component])) and routing.merged:
            raise AdapterFileError("adapters are merged into the weights; unmerge them first")
        if info.name in attachment.adapter_names(components[component]):
            raise AdapterFileError(
                f"an adapter named {info.name!r} is loaded already; unload it or load under another name"
            )
        known = {layer for layer, _ in components[component].named_modules()}
        if missing := [layer for layer in probes if layer not in known]:
            more = f" and {len(missing) - 1} more layers" if len(missing) > 1 else ""
            raise AdapterFileError(
                f"{path} is for another base ({info.base}): this one has no {component}.{missing[0]}{more}"
            )


def _copy_in(path: Path, tensors: Mapping[str, Tensor], into: Mapping[str, nn.Parameter], info: AdapterInfo) -> None:
    if absent := sorted(set(into) - set(tensors)):
        raise AdapterFileError(f"{path} is not whole: {absent[0]} is missing; copy it again or take another checkpoint")
    if extra := sorted(set(tensors) - set(into)):
        raise AdapterFileError(f"{path} holds {extra[0]}, which no layer it lists has")
    for key, parameter in into.items():
        if tensors[key].shape != parameter.shape:
            raise AdapterFileError(
                f"{path} is for another base ({info.base}): {key} is {tuple(tensors[key].shape)} in the file, "
                f"{tuple(parameter.shape)} here"
            )
    with torch.no_grad():
        for key, parameter in into.items():
            parameter.copy_(tensors[key])


def _compare_fingerprint(path: Path, info: AdapterInfo, components: Mapping[str, nn.Module]) -> None:
    here = fingerprint(components, info.name)
    pairs = [(probe, here[c][layer]) for c, probes in info.fingerprint.items() for layer, probe in probes.items()]
    distance = (sum((a - b) ** 2 for a, b in pairs) / len(pairs)) ** 0.5
    if distance > FINGERPRINT_TOLERANCE:
        warnings.warn(
            f"{path} was trained on other weights of the same shape ({info.base}; fingerprints differ by "
            f"{distance:.2g}): expect another result than on its own base",
            Note,
            stacklevel=3,
        )
