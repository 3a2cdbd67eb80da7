"""Base models on the Hugging Face hub and in its local cache."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, scan_cache_dir
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from tqdm import tqdm

from hra_diffusion.errors import BaseModelError
from hra_diffusion.files import read_json, to_file_error
from hra_diffusion.models import families
from hra_diffusion.models.folders import MODELS, variant_of

INDEX = "model_index.json"
CONFIGURATIONS = (*MODELS, "scheduler", "tokenizer", "tokenizer_2")
"""Folders whose small text files are needed."""
SUGGESTIONS = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0")
"""Well-known base models, the one that needs the least memory first."""
CONNECTION_ERRORS: tuple[type[Exception], ...] = HfHubHTTPError.__bases__  # type: ignore[assignment]
"""OSError and the HTTP client's own error, whose package depends on the version of huggingface_hub."""

OnProgress = Callable[[int], None]
"""Called with the bytes downloaded so far."""


class OfflineError(BaseModelError):
    """The hub cannot be reached."""


@dataclass(frozen=True)
class CachedBase:
    """A base model in the local cache, complete enough to load. ``size``: bytes on disk."""

    name: str
    size: int


@dataclass(frozen=True)
class HubBase:
    """A base model on the hub. ``files``: bytes of each file to download; ``gated``: the licence must be accepted."""

    name: str
    license: str
    gated: bool
    files: Mapping[str, int]

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(self.files.values())


def cached_bases() -> list[CachedBase]:
    """Return the Stable Diffusion models in the local hub cache, sorted by name."""
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = [
        CachedBase(repository.repo_id, repository.size_on_disk)
        for repository in repositories
        if repository.repo_type == "model" and any(_usable(found.snapshot_path) for found in repository.revisions)
    ]
    return sorted(found, key=lambda base: base.name)


def _usable(folder: Path) -> bool:
    """Whether a model folder holds a known pipeline and weights of all its components."""
    index = read_json(folder / INDEX)
    known = [family.pipeline for family in families.FAMILIES]
    if not isinstance(index, dict) or index.get("_class_name") not in known:
        return False
    return all(any((folder / part).glob("*.safetensors")) for part in MODELS if part in index)


def find_base(name: str, dtype: str = "float32") -> HubBase:
    """Look a base model up on the hub.

    ``dtype``: precision it will be loaded in; in half precision the smaller fp16 weights are downloaded if there are
    any. Raises OfflineError if the hub cannot be reached, and BaseModelError if there is no such model, it is not
    Stable Diffusion, or its weights are not safetensors.
    """
    try:
        info = HfApi().model_info(name, files_metadata=True)
    except HFValidationError:
        raise BaseModelError(f"{name!r} is not a hub id; expected owner/name, as in {SUGGESTIONS[0]}") from None
    except RepositoryNotFoundError:
        raise BaseModelError(
            f"the hub has no model {name!r}, or it is private; check the spelling, or log in with: hf auth login"
        ) from None
    except CONNECTION_ERRORS as error:
        raise OfflineError(f"the Hugging Face hub can't be reached: {_reason(error)}") from error
    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    pipeline = ((info.config or {}).get("diffusers") or {}).get("_class_name")
    _require_usable(name, files, pipeline)
    chosen = required_files(files, "" if dtype == "float32" else "fp16")
    return HubBase(info.id, _license(info), bool(info.gated), {file: files[file] for file in chosen})


def _require_usable(name: str, files: Collection[str], pipeline: str | None) -> None:
    if INDEX not in files:
        raise BaseModelError(
            f"{name} is not a diffusers model: it has no {INDEX}. If it holds a whole checkpoint as one .safetensors "
            "file, download that file and give its path"
        )
    families.by_pipeline_name(pipeline or "model of unknown kind", name)
    if pickled := [part for part in MODELS if _folder(files, part) and not _weights(files, part)]:
        raise BaseModelError(
            f"{name} has no .safetensors weights of {', '.join(pickled)}; pickled weights can run code and are never "
            "downloaded"
        )


def required_files(files: Collection[str], variant: str = "") -> list[str]:
    """Return the files to download: weights of one variant as safetensors, and configurations; small files first.

    ``variant``: preferred weights, "" or "fp16"; if a component lacks them, its most common variant is taken.
    """
    small = [
        file
        for file in files
        if file == INDEX or (Path(file).parent.name in CONFIGURATIONS and Path(file).suffix in (".json", ".txt"))
    ]
    found = {part: _weights(files, part) for part in MODELS}
    common = Counter(own for weights in found.values() for own in weights)
    weights = []
    for own in filter(None, found.values()):
        choice = next(v for v in (variant, "", *(v for v, _ in common.most_common())) if v in own)
        weights += own[choice]
    return [*sorted(small), *sorted(weights)]


def _folder(files: Collection[str], part: str) -> list[str]:
    return [file for file in files if Path(file).parent.as_posix() == part]


def _weights(files: Collection[str], part: str) -> dict[str, list[str]]:
    """Return a component's safetensors files by variant (see ``variant_of``)."""
    variants: dict[str, list[str]] = {}
    for file in _folder(files, part):
        if file.endswith(".safetensors"):
            variants.setdefault(variant_of(Path(file).name), []).append(file)
    return variants


def _license(info: Any) -> str:
    card = info.card_data or {}
    return str(card.get("license_name") or card.get("license") or "not stated")


def download(base: HubBase, on_progress: OnProgress | None = None) -> None:
    """Download a base model into the local cache; an interrupted download continues where it ended.

    ``on_progress`` may raise to cancel; without it huggingface_hub shows its own progress bars.
    Raises BaseModelError if the licence was not accepted or the connection is lost, FileError if the disk is full.
    """
    if on_progress:
        constants.HF_HUB_DISABLE_XET = True  # hf_xet ignores exceptions of progress bars: a file could not be cancelled
    done = 0
    for file, size in base.files.items():
        bar = _progress_bar(on_progress, done) if on_progress else None
        _download_file(base.name, file, bar)
        done += size
        if on_progress:
            on_progress(done)


def _download_file(name: str, file: str, bar: Any) -> None:
    try:
        hf_hub_download(name, file, tqdm_class=bar)
    except GatedRepoError:
        raise BaseModelError(
            f"the licence of {name} must be accepted first: open https://huggingface.co/{name}, then log in with: "
            "hf auth login"
        ) from None
    except CONNECTION_ERRORS as error:
        if isinstance(error, OSError) and error.errno:  # the disk's, not the connection's
            raise to_file_error(error, Path(constants.HF_HUB_CACHE)) from error
        raise OfflineError(f"the download of {name} was interrupted ({_reason(error)}); start it again") from error


def _progress_bar(on_progress: OnProgress, start: int) -> type[tqdm]:
    """Return a progress bar that shows nothing and reports bytes to ``on_progress``, counted from ``start``."""

    class Bar(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **kwargs: Any):
            super().__init__(*args, **kwargs | {"disable": True})
            self.bytes = start + initial

        def update(self, n: float | None = 1) -> None:
            self.bytes += int(n or 0)
            on_progress(self.bytes)

    return Bar


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def gigabytes(size: int) -> str:
    """Return a size in GB, or MB below one."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    return constants.HF_HUB_OFFLINE


def offline_advice() -> list[tuple[str, str, str]]:
    """Return what to put where on a machine without a connection, as (title, text, command) tuples."""
    name = SUGGESTIONS[0]
    return [
        (
            "One file",
            "A whole checkpoint as .safetensors (v1-5-pruned-emaonly.safetensors, say), in any folder; beside it "
            "CLIP's vocab.json and merges.txt, from the tokenizer folder of any Stable Diffusion model. Enter the "
            "path of the file.",
            "",
        ),
        (
            "A diffusers folder",
            "One with model_index.json; unet, vae and text_encoder, each with config.json and a .safetensors file; "
            "tokenizer with vocab.json and merges.txt; scheduler with scheduler_config.json (SDXL: also text_encoder_2 "
            "and tokenizer_2). Enter the folder's path. On a machine with a connection, this fills such a folder:",
            f'hf download {name} --local-dir FOLDER --include "*.json" "*.txt" "*/*.safetensors"',
        ),
        (
            "Another computer's cache",
            f"Copy its folder ~/.cache/huggingface/hub/models--{name.replace('/', '--')} into "
            f"{constants.HF_HUB_CACHE}. The model then appears in the list of known ones.",
            "",
        ),
    ]
