"""Base models on the Hugging Face hub and in the local hub cache."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from tqdm import tqdm

from hra_diffusion.errors import BaseModelError
from hra_diffusion.files import read_json
from hra_diffusion.hub import user_errors
from hra_diffusion.models import families
from hra_diffusion.models.folders import COMPONENTS_WITH_WEIGHTS, INDEX, variant_of

TOKENIZERS = tuple(dict.fromkeys(tokenizer for family in families.FAMILIES for _, tokenizer in family.encoders))
CONFIG_FOLDERS = (*COMPONENTS_WITH_WEIGHTS, "scheduler", *TOKENIZERS)
CONFIG_SUFFIXES = (".json", ".txt", ".jinja")
SUGGESTIONS = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0")
"""Well-known base models; the one with the lowest memory requirement first."""

OnProgress = Callable[[int], None]
"""Called with the number of bytes downloaded so far."""


@dataclass(frozen=True)
class CachedBase:
    """A complete base model in the local cache. ``size``: bytes on disk."""

    name: str
    size: int


@dataclass(frozen=True)
class HubBase:
    """A base model on the hub. ``files``: size of each file to download; ``gated``: its licence must be accepted."""

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
    bases = [
        CachedBase(repository.repo_id, repository.size_on_disk)
        for repository in repositories
        if repository.repo_type == "model"
        and any(_is_complete(revision.snapshot_path) for revision in repository.revisions)
    ]
    return sorted(bases, key=lambda base: base.name)


def _is_complete(folder: Path) -> bool:
    """Whether a folder contains a Stable Diffusion pipeline with weights of all its components."""
    index = read_json(folder / INDEX)
    known = [family.pipeline for family in families.FAMILIES]
    if not isinstance(index, dict) or index.get("_class_name") not in known:
        return False
    parts = [part for part in COMPONENTS_WITH_WEIGHTS if index.get(part, [None])[0]]
    return all(any((folder / part).glob("*.safetensors")) for part in parts)


def find_base(name: str, dtype: str = "float32") -> HubBase:
    """Look up a base model on the hub.

    ``dtype``: dtype to load it in; in half precision the fp16 variant is chosen if there is one. Raises HubError if
    there is no such model, or the hub cannot be reached (OfflineError), and BaseModelError if it is not Stable
    Diffusion, or its weights are not safetensors.
    """
    with user_errors(name):
        info = HfApi().model_info(name, files_metadata=True)
    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    pipeline = ((info.config or {}).get("diffusers") or {}).get("_class_name")
    _require_usable(name, files, pipeline)
    chosen = required_files(files, "" if dtype == "float32" else "fp16")
    return HubBase(info.id, _license(info), bool(info.gated), {file: files[file] for file in chosen})


def _require_usable(name: str, files: Collection[str], pipeline: str | None) -> None:
    if INDEX not in files:
        raise BaseModelError(
            f"{name} is not a diffusers model: it has no {INDEX}. If it contains a single-file checkpoint "
            "(.safetensors), download that file and give its path"
        )
    families.by_pipeline_name(pipeline or "model of unknown kind", name)
    if pickled := [part for part in COMPONENTS_WITH_WEIGHTS if _folder(files, part) and not _weights(files, part)]:
        raise BaseModelError(
            f"{name} has no .safetensors weights of {', '.join(pickled)}; pickled weights can run code and are never "
            "downloaded"
        )


def required_files(files: Collection[str], variant: str = "") -> list[str]:
    """Return the files to download: configurations, then safetensors weights of one variant per component.

    ``variant``: preferred variant, "" or "fp16". A component without it falls back to the default variant, then to the
    most common one.
    """
    configurations = [
        file
        for file in files
        if file == INDEX or (Path(file).parent.name in CONFIG_FOLDERS and Path(file).suffix in CONFIG_SUFFIXES)
    ]
    by_component = [found for part in COMPONENTS_WITH_WEIGHTS if (found := _weights(files, part))]
    common = Counter(name for found in by_component for name in found)
    order = (variant, "", *(name for name, _ in common.most_common()))
    weights = [file for found in by_component for file in found[next(name for name in order if name in found)]]
    return [*sorted(configurations), *sorted(weights)]


def _folder(files: Collection[str], part: str) -> list[str]:
    return [file for file in files if Path(file).parent.as_posix() == part]


def _weights(files: Collection[str], part: str) -> dict[str, list[str]]:
    """Return the safetensors files of a component by variant."""
    variants: dict[str, list[str]] = {}
    for file in _folder(files, part):
        if file.endswith(".safetensors"):
            variants.setdefault(variant_of(Path(file).name), []).append(file)
    return variants


def _license(info: Any) -> str:
    card = info.card_data or {}
    return str(card.get("license_name") or card.get("license") or "not stated")


def download(base: HubBase, on_progress: OnProgress | None = None) -> None:
    """Download a base model to the local cache; files that are complete there are kept.

    ``on_progress`` may raise to cancel; without it huggingface_hub shows progress bars. Raises HubError if the
    licence was not accepted or the connection is lost, and FileError if the disk is full.
    """
    if on_progress:
        constants.HF_HUB_DISABLE_XET = True  # hf_xet ignores exceptions of progress bars: a file could not be cancelled
    done = 0
    for file, size in base.files.items():
        bar = _progress_bar(on_progress, done) if on_progress else None
        with user_errors(base.name):
            hf_hub_download(base.name, file, tqdm_class=bar)
        done += size
        if on_progress:
            on_progress(done)


def download_configurations(name: str) -> None:
    """Download the configurations of a base model's components to the local cache: kilobytes.

    Raises HubError and BaseModelError as ``find_base`` and ``download`` do.
    """
    for file in find_base(name).files:
        if Path(file).name in (INDEX, "config.json"):
            with user_errors(name):
                hf_hub_download(name, file, tqdm_class=_progress_bar(lambda done: None, 0))


def _progress_bar(on_progress: OnProgress, start: int) -> type[tqdm]:
    """Return a silent progress bar class that calls ``on_progress`` with the bytes done, counted from ``start``."""

    class Bar(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **kwargs: Any):
            super().__init__(*args, **kwargs | {"disable": True})
            self.bytes = start + initial

        def update(self, n: float | None = 1) -> None:
            self.bytes += int(n or 0)
            on_progress(self.bytes)

    return Bar


def format_size(size: int) -> str:
    """Format a size in bytes as GB, or as MB below 1 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    return constants.HF_HUB_OFFLINE


def offline_advice() -> list[tuple[str, str, str]]:
    """Return the ways to provide a base model without a connection, as (title, text, command) tuples."""
    name = SUGGESTIONS[0]
    return [
        (
            "One file",
            "A checkpoint with all components as .safetensors (for example v1-5-pruned-emaonly.safetensors), in any "
            "folder, and beside it CLIP's vocab.json and merges.txt, from the tokenizer folder of any Stable Diffusion "
            "model. Enter the path of the file.",
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
            f"{constants.HF_HUB_CACHE}. The model then appears in the list of base models.",
            "",
        ),
    ]
