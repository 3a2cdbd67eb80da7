"""The adapter file: one safetensors file with the parameters and metadata of one adapter.

Tensors are named ``{component}.{layer path}.{parameter}`` ("unet.….to_q.right.u"). Everything else about the adapter is
in the file's metadata.
"""

import contextlib
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from hra_diffusion.adapters import adapter_keys, attachment, registry
from hra_diffusion.adapters.fingerprint import adapter_fingerprint
from hra_diffusion.adapters.token_embeddings import vectors_of
from hra_diffusion.errors import UserError, shown
from hra_diffusion.files import has_changed, save_tensors
from hra_diffusion.names import validated_name

FORMAT = "hra-diffusion"
FORMAT_VERSION = 1
METADATA = frozenset({"format", "format_version", "adapter"})
"""Names of the entries in the metadata of an adapter file, beside the checksum."""
WEIGHT_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""File names of the weights in an adapter folder of PEFT and of diffusers."""
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
"""Suffixes of files that can run code when they are opened."""
IMPORT_COMMAND = "hra-diffusion import"
MAX_RANK = 256
"""Largest rank in an adapter's options. Layers of a larger rank are listed in ``AdapterInfo.ranks``."""
MAX_METADATA, MAX_HEADER = 10**6, 2**24
"""Largest size in bytes of this project's metadata, and of the header of an adapter file of any program."""
MAX_TENSORS, MAX_KEY, MAX_DIMENSIONS = 20_000, 500, 8
"""Largest number of tensors in an adapter file, length of a key, and number of a tensor's dimensions."""
DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL"})
"""Types of tensors in adapter files, as safetensors names them."""


class AdapterFileError(UserError):
    """An adapter file can't be used."""


class OtherFileError(AdapterFileError):
    """A file is whole, but not an adapter of this project."""


def _plausible(probe: float) -> float:
    """Return the probe, which is NaN for a weight of zeros. Raises ValueError for one that no weight has."""
    if abs(probe) > 1e6:
        raise ValueError("no weight has such a probe")
    return probe


_Text = Annotated[str, Field(max_length=1000)]
_Layer = Annotated[str, Field(max_length=MAX_KEY)]
_Probes = Annotated[dict[_Layer, Annotated[float, AfterValidator(_plausible)]], Field(min_length=1)]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TrainingRecord(TypedDict, total=False):
    """Record of a training or of an import, with further entries."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    step: Annotated[int, Field(ge=0)]
    photos: Annotated[int, Field(ge=0)]
    seconds: dict[_Text, _Amount]
    memory: _Amount
    preset: _Text
    learning_rate: _Amount
    resolution: Annotated[int, Field(ge=1, le=2**16)] | None
    seed: int


class Subject(BaseModel):
    """A subject of an adapter."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    trigger: _Text = ""
    class_noun: _Text = ""

    def __str__(self) -> str:
        """Return the subject as it appears in prompts: "sks dog"."""
        return f"{self.trigger} {self.class_noun}".strip()


class AdapterInfo(BaseModel):
    """Metadata of an adapter file."""

    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="strings")

    name: str
    method: Annotated[str, Field(max_length=100)]
    options: dict[str, Any] = Field(description="The method's configuration.")
    base: _Text = Field(description="Name of the base model at the time of training.")
    fingerprint: dict[_Text, _Probes] = Field(description="Component -> layer -> probe of the frozen weight.")
    ranks: dict[_Text, dict[_Layer, Annotated[int, Field(ge=1)]]] = Field(
        default_factory=dict, description="Component -> layer -> rank, where it differs from the options."
    )
    prediction_type: _Text = Field(default="", description='What the base model\'s UNet predicts; "" if unknown.')
    zero_snr: bool | None = Field(
        default=None, description="Whether the base model's noise schedule has zero terminal SNR."
    )
    embeddings: dict[_Text, dict[_Text, list[Annotated[int, Field(ge=0)]]]] = Field(
        default_factory=dict, description="Component -> trigger -> ids of its tokens, whose embeddings are trained."
    )
    targets: _Text = "attention"
    trigger: _Text = ""
    class_noun: _Text = ""
    subjects: Annotated[tuple[Subject, ...], Field(max_length=100)] = Field(
        default=(), description="All subjects of an adapter that has several. Trigger and class noun are the first's."
    )
    training: TrainingRecord = Field(default_factory=TrainingRecord)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return validated_name(name)

    @model_validator(mode="after")
    def _check_options(self) -> "AdapterInfo":
        if self.method in registry.method_names():
            registry.get_method(self.method).parse(self.options)
        return self

    @property
    def subject(self) -> str:
        """The name of the first subject in prompts: "sks dog"."""
        return str(self.all_subjects[0])

    @property
    def all_subjects(self) -> tuple[Subject, ...]:
        """The subjects, of which there is at least one."""
        return self.subjects or (Subject(trigger=self.trigger, class_noun=self.class_noun),)

    @property
    def prompt_names(self) -> str:
        """The names of all subjects in prompts: "sks dog, qwe teapot"."""
        return ", ".join(map(str, self.all_subjects))


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
        if has_changed(path, file.metadata(), METADATA):
            raise AdapterFileError(
                f"{path} does not match its checksum: it is damaged, or another program has changed it; copy it again "
                "or use another checkpoint"
            )
        # copies: Windows can't replace a file while tensors are mapped to it
        return info, {key: tensor.clone() for key, tensor in read_tensors(path, file).items()}


def read_tensors(path: Path, file: Any) -> dict[str, Tensor]:
    """Read the tensors of an open adapter file of any program.

    Raises AdapterFileError if one is not finite or of a kind that adapters don't have, or if there are too many.
    """
    keys = list(file.keys())
    if len(keys) > MAX_TENSORS:
        raise AdapterFileError(f"{path} has {len(keys):,} tensors; adapters have at most {MAX_TENSORS:,}")
    for key in keys:
        if reason := _oddity(key, file.get_slice(key)):
            raise AdapterFileError(f"{path} is not an adapter: its tensor {shown(key)} has {reason}")
    tensors = {key: file.get_tensor(key) for key in keys}
    for key, tensor in tensors.items():
        if not (tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all():  # float8 has no isfinite
            raise AdapterFileError(
                f"{path} contains NaN or infinite values in {key}; get the file again, or use an earlier checkpoint"
            )
    return tensors


def _oddity(key: str, part: Any) -> str:
    """What a tensor has that no adapter's has, or ""."""
    if len(key) > MAX_KEY:
        return f"a name of more than {MAX_KEY} characters"
    if (dimensions := len(part.get_shape())) > MAX_DIMENSIONS:
        return f"{dimensions} dimensions"
    return "" if (kind := part.get_dtype()) in DTYPES else f"the type {kind}"


def rewrite_info(path: Path, info: AdapterInfo) -> None:
    """Replace the metadata of an adapter file. Its tensors don't change."""
    _, tensors = read(path)
    save(path, {}, info, tensors)


def attached_info(components: Mapping[str, nn.Module], name: str, **fields: Any) -> AdapterInfo:
    """The metadata of an attached adapter; ``fields`` are those that the models don't provide (base, trigger, …)."""
    adapters = attachment.layers_by_component(components, name)
    adapter = next(iter(next(iter(adapters.values())).values()))
    fields.setdefault("fingerprint", adapter_fingerprint(components, name))
    counts = Counter(layer.config.rank for layers in adapters.values() for layer in layers.values())
    most_common = counts.most_common(1)[0][0]
    options = adapter.config.model_dump(exclude=registry.TRAINING_OPTIONS) | {"rank": min(most_common, MAX_RANK)}
    ranks = {
        component: {path: layer.config.rank for path, layer in layers.items() if layer.config.rank != options["rank"]}
        for component, layers in adapters.items()
    }
    embeddings = {key: vectors.tokens for key, model in components.items() if (vectors := vectors_of(model, name))}
    known = {"options": options, "ranks": ranks, "embeddings": embeddings}
    return AdapterInfo(name=name, method=adapter.method, **known, **fields)


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Context manager that opens an adapter file of any program.

    Raises AdapterFileError if it is missing, unreadable, no safetensors file, or has a header that no adapter needs.
    """
    try:
        _check_header(path)
        with _opened(path) as file:
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


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except RuntimeError:  # torch opens the file again, which another process may have deleted
        if not path.exists():
            raise FileNotFoundError from None
        raise AdapterFileError(f"{path} changed while it was opened; try again") from None


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if MAX_HEADER < size <= path.stat().st_size:  # the size of a damaged file is reported by safetensors
        raise AdapterFileError(
            f"{path} is not an adapter: its header has {size / 1e6:.0f} MB; at most {MAX_HEADER / 1e6:.0f} are allowed"
        )


def _parse_info(path: Path, file: Any) -> AdapterInfo:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        if adapter_keys.has_adapter_keys(file.keys()):
            raise OtherFileError(
                f"{path} is another program's adapter; import it with {IMPORT_COMMAND} {shlex.quote(str(path))}"
            )
        raise OtherFileError(f"{path} is a safetensors file, but not an adapter of hra-diffusion")
    if (size := sum(map(len, metadata.values()))) > MAX_METADATA:
        raise AdapterFileError(
            f"{path} has {size / 1e6:.1f} MB of metadata; at most {MAX_METADATA / 1e6:.0f} is allowed; "
            "copy it again, or import the original file again"
        )
    version = metadata.get("format_version", "")
    if not version.isdecimal() or len(version) > 9:
        raise AdapterFileError(f"{path} has damaged metadata: format version {shown(version)}; copy it again")
    if int(version) > FORMAT_VERSION:
        raise AdapterFileError(
            f"{path} has format version {version}, newer than {FORMAT_VERSION}; update hra-diffusion"
        )
    try:
        return AdapterInfo.model_validate_json(metadata.get("adapter", ""))
    except ValidationError as error:
        raise AdapterFileError(f"{path} has damaged metadata: {registry.explain(error)}") from None
