"""A base model held as a diffusers pipeline, and the adapters put on and off it."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import nn

from hra_diffusion.adapters import adapter_file, attachment
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.adapters.quantization import quantise
from hra_diffusion.errors import BaseModelError, Note, UserError
from hra_diffusion.libraries import only_errors_logged
from hra_diffusion.models import families, noise

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

TOYBOX = "toybox"
PACKAGE = Path(__file__).resolve().parent
ASSETS = PACKAGE / "assets" if (PACKAGE / "assets").is_dir() else PACKAGE.parent / "assets"
"""The embedded models: inside the installed package, beside it in a checkout."""
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
"""The parts of a pipeline that adapters live on."""
MODELS = (*COMPONENTS, "vae")
"""The parts of a pipeline that have weights."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LOADING = threading.Lock()
"""Held while a model is loaded. The libraries change torch.nn for the whole process until it is there (accelerate's
init_empty_weights): of two threads that load at once, the later would leave every module made from then on empty."""


def computes_bfloat16(device: str) -> bool:
    """Whether a device ("cuda", "cpu", …) computes in bfloat16 itself.

    A CPU whose widest instructions are AVX2 emulates it: 2048² matrices multiply at 0.3 GFLOP/s, in float32 at 138.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2"


def load_base(
    source: str = TOYBOX,
    device: str | None = None,
    dtype: str = "float32",
    weights: str = "full",
    prediction_type: str | None = None,
    rescale_zero_snr: bool | None = None,
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline, without a safety checker, on ``device`` (the best there is by default).

    ``source``: "toybox" (embedded), a diffusers folder, a single ``.safetensors`` checkpoint, or a hub id.
    ``weights``: "int8" or "nf4" stores the UNet's in fewer bits (see quantised), before they reach the device.
    ``prediction_type`` ("epsilon", "v_prediction" or "sample") and ``rescale_zero_snr`` (zero terminal SNR) override
    what the base says of its noise process.
    ``pipe.base_name`` is how adapters will name it; ``pipe.base_file`` is its single checkpoint, or None.
    Raises BaseModelError if it is missing, not Stable Diffusion, or its noise process is not discrete (see noise).
    Warns (Note) where the prediction type of a single file is not certain.
    """
    if dtype not in DTYPES:
        raise BaseModelError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    if prediction_type not in (None, *noise.PREDICTION_TYPES):
        raise BaseModelError(
            f"unknown prediction type {prediction_type!r}; use one of {', '.join(noise.PREDICTION_TYPES)}"
        )
    with only_errors_logged():
        for family in families.FAMILIES:
            families.pipeline_class(family)
    pipe = _read(source, DTYPES[dtype], prediction_type)
    pipe.scheduler = noise.overridden(pipe.scheduler, prediction_type, rescale_zero_snr)
    if weights != "full":
        quantise(pipe.unet, weights)
    pipe.to(device_for(device))
    pipe.set_progress_bar_config(disable=True)
    pipe.base_name = base_name(source)
    pipe.base_file = Path(source).resolve() if Path(source).is_file() else None
    return pipe


def base_name(source: str) -> str:
    """How files name this base: a folder's or file's own name (never its path), or the hub id."""
    return Path(source).resolve().name if Path(source).exists() and source != TOYBOX else source


def kind(source: str) -> str:
    """What a base is, without loading it: "toybox", "sd1", "sd2" or "sdxl"; for a hub id that is not in the local cache
    by its name, and "sd1" where nothing tells."""
    if source == TOYBOX:
        return TOYBOX
    try:
        if Path(source).is_file():
            from hra_diffusion.models import single_file
            from hra_diffusion.models.families.architectures import SD1, SD2, SD2_BASE, SDXL

            return {SD1: "sd1", SD2: "sd2", SD2_BASE: "sd2", SDXL: "sdxl"}[
                single_file.recognise(Path(source), "epsilon")
            ]
        folder = Path(source) if Path(source).is_dir() else cached(source)
        if folder is not None:
            unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
            text = {"text_time": "sdxl"}.get(unet.get("addition_embed_type"))
            return text or ("sd2" if unet.get("cross_attention_dim") == 1024 else "sd1")
    except (OSError, ValueError, AttributeError, SafetensorError):  # told when it is loaded
        return "sd1"
    name = source.lower()
    return "sdxl" if "xl" in name else "sd2" if "diffusion-2" in name else "sd1"


def cached(source: str) -> Path | None:
    """The folder of a hub model in the local cache, if its configuration is there."""
    try:
        found = try_to_load_from_cache(source, "unet/config.json")
    except ValueError:  # no hub id
        return None
    return Path(found).parent.parent if isinstance(found, str) else None


def name_of(pipe: DiffusionPipeline) -> str:
    """How files name the base of a pipeline, loaded by us or by the person."""
    return getattr(pipe, "base_name", None) or base_name(str(pipe.config.get("_name_or_path") or "unknown"))


def components(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """The parts of the pipeline that adapters live on, by name."""
    return {name: part for name in COMPONENTS if isinstance(part := getattr(pipe, name, None), nn.Module)}


def load(pipe: DiffusionPipeline, file: str | Path, name: str | None = None) -> AdapterInfo:
    """Put a saved adapter on a pipeline and make it the active one. Raises AdapterFileError (see adapter_file.load).

    Warns (Note) if it was trained for another noise process.
    """
    info = adapter_file.load(Path(file), components(pipe), name)
    if reason := noise_incompatibility(info, pipe):
        warnings.warn(f"{file} was {reason}", Note, stacklevel=2)
    activate(pipe, {info.name: 1.0})
    return info


def noise_incompatibility(info: AdapterInfo, pipe: DiffusionPipeline) -> str:
    """How the noise process an adapter was trained for differs from this base's; "" if it does not, or is unknown."""
    if not info.prediction_type:
        return ""
    here = noise.stated(cast(Any, pipe).scheduler)
    if here == {"prediction_type": info.prediction_type, "zero_snr": info.zero_snr}:
        return ""
    trained, used = noise.in_words(info.prediction_type, info.zero_snr), noise.in_words(**here)
    return f"trained on a base that predicts {trained}; this one predicts {used}: expect poor results"


def save(pipe: DiffusionPipeline, file: str | Path, name: str, trigger: str = "", class_noun: str = "") -> None:
    """Write an adapter that is on the pipeline to a file. Raises UserError for an unknown one, or FileError."""
    require_loaded(pipe, [name])
    facts = {"base": name_of(pipe), "trigger": trigger, "class_noun": class_noun}
    facts |= noise.stated(cast(Any, pipe).scheduler)
    adapter_file.save(Path(file), components(pipe), adapter_file.info_of(components(pipe), name, **facts))


def unload(pipe: DiffusionPipeline, name: str) -> None:
    """Take an adapter off the pipeline; with the last one the pipeline is as it was."""
    adapter_file.unload(components(pipe), name)


def loaded(pipe: DiffusionPipeline) -> list[str]:
    """Names of the adapters on the pipeline."""
    return list(dict.fromkeys(name for model in components(pipe).values() for name in attachment.adapter_names(model)))


def require_loaded(pipe: DiffusionPipeline, names: Iterable[str]) -> None:
    """Raises UserError naming the first adapter that is not on the pipeline, and those that are."""
    here = loaded(pipe)
    if unknown := sorted(set(names) - set(here)):
        raise UserError(f"no adapter named {unknown[0]!r} is loaded; loaded: {', '.join(here) or 'none'}")


def active(pipe: DiffusionPipeline) -> dict[str, float]:
    """The adapters in use and their strengths, in order."""
    routings = [attachment.state_of(model) for model in components(pipe).values()]
    return {name: strength for routing in routings if routing for name, strength in routing.mix}


def activate(pipe: DiffusionPipeline, strengths: Mapping[str, float]) -> None:
    """Apply these adapters at these strengths, in this order; an empty mapping is the base.

    Raises ValueError for a name that is not on the pipeline.
    """
    require_loaded(pipe, strengths)
    for model in components(pipe).values():
        here = attachment.adapter_names(model)
        attachment.activate(model, {name: strength for name, strength in strengths.items() if name in here})


def merge(pipe: DiffusionPipeline) -> None:
    """Write the active adapters into the weights of all components."""
    for model in components(pipe).values():
        attachment.merge(model)


def unmerge(pipe: DiffusionPipeline) -> None:
    """Bring back the bits that ``merge`` replaced."""
    for model in components(pipe).values():
        attachment.unmerge(model)


@contextlib.contextmanager
def vae_upcast(vae: Any) -> Iterator[Any]:
    """The autoencoder in a precision that holds its values: SDXL's overflows in float16 and says so."""
    narrow = vae.dtype == torch.float16 and vae.config.force_upcast
    if narrow:
        vae.float()
    try:
        yield vae
    finally:
        if narrow:
            vae.half()


def _read(source: str, dtype: torch.dtype, prediction_type: str | None) -> StableDiffusionPipeline:
    path = ASSETS / TOYBOX if source == TOYBOX else Path(source)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise BaseModelError(
                f"{path} is not a .safetensors file; pickled checkpoints can run code and are not opened: get the same "
                "model as .safetensors, or convert it (the README says how); an adapter is no base, it comes in with "
                f"{adapter_file.IMPORT} once it is .safetensors"
            )
        from hra_diffusion.models import single_file

        return _open(source, single_file.read, path, dtype, prediction_type)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if path.is_dir():
        _check_folder(path)
        options["local_files_only"] = True
    elif source == TOYBOX:
        raise BaseModelError(f"the embedded base is missing from {path}; install the project again")
    elif not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        raise BaseModelError(
            f"there is no base model {source!r}: not a folder, not a .safetensors file, not a hub id like owner/name"
        )
    if folder := path if path.is_dir() else cached(source):
        _check_weights(folder, source)
        if variant := _variant(folder, source):
            options["variant"] = variant
    return _open(source, _from_pretrained, str(path) if path.is_dir() else source, options)


def _check_folder(path: Path) -> None:
    index = path / "model_index.json"
    if not index.is_file():
        if adapter_file.weights_in(path):
            raise BaseModelError(f"{path} is an adapter, not a base: bring it in with {adapter_file.IMPORT}")
        raise BaseModelError(f"{path} holds no model_index.json: not a diffusers model folder")
    try:
        json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError):
        raise BaseModelError(f"{index} is damaged: not a JSON object; copy the model again") from None


def _check_weights(path: Path, source: str) -> None:
    """Raises BaseModelError for a model folder without all its shards, or with pickled weights only."""
    for shards in path.glob("*/*.safetensors.index*.json"):
        try:
            names = set(json.loads(shards.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(name for name in names if not (shards.parent / name).is_file())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BaseModelError(f"{shards} is damaged; copy the model again") from None
        if 0 < len(missing) < len(names):  # without all of them it is a variant that was not copied
            raise BaseModelError(f"{shards.parent / missing[0]} is missing; copy the model again, all its shards")
    parts = [part for part in MODELS if not any((path / part).glob("*.safetensors"))]
    if pickled := ", ".join(part for part in parts if any((path / part).glob("*.bin"))):
        raise BaseModelError(
            f"{source} holds {pickled} as pickles (.bin), which can run code and are not opened: get the same model as "
            ".safetensors, or convert it (the README says how)"
        )


def _variant(folder: Path, source: str) -> str | None:
    """The variant ("fp16") to load if a part of the model has no plain weights, with a warning; else None.

    File names are those of diffusers and transformers: "model.fp16-00001-of-00002.safetensors".
    """
    found: dict[str, set[str]] = {}
    for part in MODELS:
        names = [file.name.removesuffix(".safetensors") for file in (folder / part).glob("*.safetensors")]
        variants = {re.sub(r"-\d+-of-\d+$", "", name).partition(".")[2] for name in names}
        if variants and "" not in variants:
            found[part] = variants
    if not found:
        return None
    variant = max(set.union(*found.values()), key=lambda name: sum(name in own for own in found.values()))
    warnings.warn(
        f"{source} holds its weights as variant {variant} only: {', '.join(found)}; loading that variant",
        Note,
        stacklevel=4,
    )
    return variant


def _from_pretrained(place: str, options: dict[str, Any]) -> DiffusionPipeline:
    """A folder or a hub id, by the class that it says it is. Raises BaseModelError for one that no family has."""
    from diffusers import DDIMScheduler, DiffusionPipeline

    local = {key: options[key] for key in ("local_files_only",) if key in options}
    index = cast(dict, DiffusionPipeline.load_config(place, **local))
    kind = index.get("_class_name")
    family = next((family for family in families.FAMILIES if family.pipeline == kind), None)
    if family is None:
        known = " or ".join(family.pipeline for family in families.FAMILIES)
        raise BaseModelError(f"{place} is a {kind}; only {known} can be used")
    config = cast(dict, DDIMScheduler.load_config(place, subfolder="scheduler", **local))
    scheduler = noise.read(index["scheduler"][1], config)  # first: what is refused is refused before its weights load
    return families.pipeline_class(family).from_pretrained(place, scheduler=scheduler, **options, **family.loading)


UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, SafetensorError
)  # fmt: skip
"""What the libraries below raise for a model that is not whole."""


def hide_loading_bars() -> None:
    """For programs: the loading bars of the libraries below are not shown from now on."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def _open(source: str, reader: Any, *arguments: Any) -> StableDiffusionPipeline:
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        with LOADING:
            pipe = reader(*arguments)
    except UserError:
        raise
    except (*UNREADABLE, SingleFileComponentError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BaseModelError(f"the base model {source!r} can't be loaded: {reason[:300]}") from error
    if reason := _unusable(pipe):
        raise BaseModelError(f"{source!r} can't be used: {reason}")
    return cast("StableDiffusionPipeline", pipe)


def _unusable(pipe: Any) -> str | None:
    """Why a pipeline that loaded is no base to work on, or None."""
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        return "its UNet takes more than latents: an inpainting, depth or editing model, not text to image"
    if any(getattr(pipe, name, None) is None for name, _ in families.of(pipe).encoders):
        return "a text encoder is missing: an SDXL refiner, not a base"
    if pipe.unet.config.addition_embed_type not in families.of(pipe).additions:
        return f"its UNet wants {pipe.unet.config.addition_embed_type!r} conditioning, which its kind of pipeline lacks"
    return None


def devices() -> list[str]:
    """The kinds of device that models can be on here, the best first."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, found in there.items() if found]


def device_for(name: str | None) -> str:
    """The device of this name, the best there is for none. Raises BaseModelError if it is not here."""
    kind = (name or "cpu").split(":")[0]
    if kind in ("cuda", "mps") and kind not in devices():
        raise BaseModelError(f"no {kind.upper()} device is available here; use --device cpu")
    return name or devices()[0]
