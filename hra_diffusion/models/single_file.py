"""A single .safetensors checkpoint in the original layout, opened without a network.

The file has all weights, but neither configuration nor vocabulary. Its architecture is recognised by its tensors' names
and shapes and configured from what the project knows (families/architectures.py). CLIP's vocabulary, which all these
models share, is looked for beside the file, then in the local hub cache; only then is the hub asked.
"""

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import safe_open
from transformers import CLIPTokenizer

from hra_diffusion.adapters import adapter_file, adapter_keys
from hra_diffusion.errors import BaseModelError, Note
from hra_diffusion.models import families
from hra_diffusion.models.families.architectures import PREDICTION_KEY, RELEASED, SD2, SD2_BASE, SDXL, Architecture

UNET = "model.diffusion_model."
VOCABULARY = ("vocab.json", "merges.txt")
"""CLIP's vocabulary as files."""
HUB_VOCABULARIES = (
    ("openai/clip-vit-large-patch14", ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer"),
    ("stabilityai/stable-diffusion-2-1", "tokenizer"),
)
"""Where on the hub the same vocabulary is; the first is asked for, all may be in the cache."""
PREDICTIONS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
"""diffusers' names of what ``PREDICTION_KEY`` may say."""
SD2_ARCHITECTURES = {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"}
"""What the two versions 2 predict, by "modelspec.architecture"."""
SD2_MARK, SD2_SPREAD = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09


@dataclass(frozen=True)
class DetectedNoise:
    """What a checkpoint says of its noise process. ``note``: what is not certain about it."""

    prediction_type: str
    zero_snr: bool
    note: str = ""


def load(path: Path, dtype: torch.dtype, prediction_type: str | None = None) -> DiffusionPipeline:
    """The checkpoint as a pipeline; ``prediction_type`` overrides what it says. Warns (Note) where that is not certain.

    Raises BaseModelError for one that is no base, one of another noise process, or where there is no vocabulary.
    """
    architecture = detect_architecture(path, prediction_type)
    noise = detect_noise(path, architecture, prediction_type)
    if noise.note:
        warnings.warn(noise.note, Note, stacklevel=2)
    return load_with_architecture(path, architecture.predicting(noise.prediction_type, noise.zero_snr), dtype)


def load_with_architecture(path: Path, architecture: Architecture, dtype: torch.dtype) -> DiffusionPipeline:
    """The checkpoint's weights in this architecture."""
    family: Any = families.by_pipeline_name(architecture.pipeline, architecture.name)
    names = [tokenizer for _, tokenizer in family.encoders]
    tokenizers = {
        name: load_vocabulary(path, pad, encoder["max_position_embeddings"])
        for name, pad, encoder in zip(names, architecture.pads, architecture.encoders, strict=True)
    }
    with tempfile.TemporaryDirectory() as folder:
        architecture.write(Path(folder))
        return families.pipeline_class(family).from_single_file(
            str(path), config=folder, dtype=dtype, local_files_only=True, **tokenizers, **family.from_pretrained_kwargs
        )


def detect_architecture(path: Path, prediction_type: str | None = None) -> Architecture:
    """Which released architecture a checkpoint has; the versions 2 differ in what they predict (see ``detect_noise``).

    Raises BaseModelError, saying what it is if that can be seen.
    """
    with safe_open(path, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (not a dict)
        facts = file.metadata() or {}
    architecture = _architecture(path, shapes, facts)
    if architecture is SD2 and detect_noise(path, SD2, prediction_type).prediction_type == "epsilon":
        return SD2_BASE
    return architecture


def detect_noise(path: Path, architecture: Architecture, prediction_type: str | None = None) -> DetectedNoise:
    """The noise process of a checkpoint: by ``prediction_type`` if given, else by its marks, else the released base's.

    Marks are the tensor keys "v_pred" and "ztsnr", then the metadata of Stability AI's Model Metadata Standard. The
    keys come first since other programs follow them alone, and metadata outlives merges: ComfyUI (for SDXL,
    comfy/supported_models.py at a125cd84), AUTOMATIC1111 (pull requests 16567 and 16569), Forge. A version 2 without
    marks is decided by its weights. Raises BaseModelError for another noise process.
    """
    with safe_open(path, "pt") as file:
        keys, facts = set(file.keys()), file.metadata() or {}
        biases = file.get_tensor(SD2_MARK) if SD2_MARK in keys else torch.zeros(1)
    if {"edm_mean", "edm_std"} <= keys or "edm_vpred.sigma_max" in keys:
        raise BaseModelError(f"{path} can be neither trained nor drawn with: it has EDM's noise levels (tensors edm_…)")
    said, note = facts.get(PREDICTION_KEY, "").lower(), ""
    if prediction_type:
        found = prediction_type
    elif "v_pred" in keys:
        found = "v_prediction"
        if PREDICTIONS.get(said) == "epsilon":
            note = f"{path.name}: its tensor v_pred says v_prediction, its metadata epsilon; v_prediction is used"
    elif said in PREDICTIONS:
        found = PREDICTIONS[said]
    elif said:
        raise BaseModelError(
            f"{path} says {PREDICTION_KEY} {said!r}, which is neither epsilon nor v; if that is wrong, add "
            "--prediction-type epsilon or v_prediction"
        )
    elif architecture not in (SD2, SD2_BASE):
        found = "epsilon"
    elif (kind := facts.get("modelspec.architecture")) in SD2_ARCHITECTURES:
        found = SD2_ARCHITECTURES[kind]
    else:
        found, note = _by_weights(path, biases)
    zero_snr = "ztsnr" in keys
    if zero_snr and found != "v_prediction":
        zero_snr = False
        note = (
            f"{path.name} has the mark ztsnr (zero terminal SNR) but predicts {found}, so the mark is ignored; if its "
            "pictures are noise, add --prediction-type v_prediction --rescale-zero-snr"
        )
    return DetectedNoise(found, zero_snr, note)


def _by_weights(path: Path, biases: torch.Tensor) -> tuple[str, str]:
    """What a version 2 without marks predicts, and a note that says so.

    The rule is ComfyUI's (comfy/supported_models.py at a125cd84), which Forge has too: the biases of the last
    attention's first norm vary more where it predicts velocity.
    """
    spread = float(biases.float().std(unbiased=False))
    found, other = ("v_prediction", "epsilon") if spread > SD2_SPREAD else ("epsilon", "v_prediction")
    note = (
        f"{path.name} is a Stable Diffusion 2 that does not say what it predicts; {found} is used, by ComfyUI's rule "
        f"({SD2_MARK.removeprefix(UNET)} has standard deviation {spread:.2f}; above {SD2_SPREAD} means v_prediction). "
        f"If its pictures are noise or flat, add --prediction-type {other}"
    )
    return found, note


def _architecture(path: Path, shapes: dict[str, Any], facts: Mapping[str, str]) -> Architecture:
    """The architecture by the names and shapes of tensors; SD2 for both versions 2."""
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    if first is None:
        raise BaseModelError(f"{path} is {_what_else(shapes, facts)}")
    if first[1] != 4:
        raise BaseModelError(
            f"{path} can't be used: its UNet takes {first[1]} channels, not 4: an inpainting, depth or editing model, "
            "not text to image"
        )
    if any(key.startswith("conditioner.embedders.1.") for key in shapes):
        return SDXL
    if any(key.startswith("conditioner.") for key in shapes):
        raise BaseModelError(f"{path} is an SDXL refiner, not a base")
    width = shapes.get(f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", [0, 0])[1]
    if families.VERSIONS.get(width) not in ("sd1", "sd2"):
        raise BaseModelError(f"{path} is no Stable Diffusion 1, 2 or XL: its text is {width} wide, not 768 or 1024")
    if not any(key.startswith("cond_stage_model.") for key in shapes):
        raise BaseModelError(f"{path} has no text encoder; get the whole checkpoint, not the UNet alone")
    return RELEASED[families.VERSIONS[width]]


def load_vocabulary(path: Path, pad: str, length: int) -> CLIPTokenizer:
    """CLIP's tokenizer for the checkpoint at ``path``; ``pad`` is its padding token, ``length`` its prompts' in tokens.

    Raises BaseModelError, saying where to put the two files, if there is no vocabulary to be had.
    """
    for folder in (path.parent, path.parent / "tokenizer"):
        if all((folder / name).is_file() for name in VOCABULARY):
            break
    else:
        folder = _from_hub(path)
    return CLIPTokenizer.from_pretrained(str(folder), pad_token=pad, model_max_length=length)


def _from_hub(path: Path) -> Path:
    """The folder of the vocabulary in the local hub cache, where it is fetched to if need be."""
    for (repository, folder), local in [*((source, True) for source in HUB_VOCABULARIES), (HUB_VOCABULARIES[0], False)]:
        try:
            files = [
                hf_hub_download(repository, name, subfolder=folder or None, local_files_only=local)
                for name in VOCABULARY
            ]
        except (OSError, ValueError, HfHubHTTPError):  # not in the cache, or no network
            continue
        return Path(files[0]).parent
    raise BaseModelError(
        f"{path} holds no vocabulary, as no such file does, and the hub can't be reached: put CLIP's "
        f"{' and '.join(VOCABULARY)} beside it (from the tokenizer folder of any Stable Diffusion model), or run once "
        "with a network"
    )


def _what_else(shapes: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    """What a file without the original's UNet is, as far as its names tell."""
    if facts.get("format") == adapter_file.FORMAT:
        return "an adapter, not a base: give it as --adapter"
    if adapter_keys.has_adapter_keys(shapes):
        return f"an adapter, not a base: bring it in with {adapter_file.IMPORT_COMMAND}"
    if any(key.startswith(("down_blocks.", "double_blocks.", "transformer.", "joint_blocks.")) for key in shapes):
        return (
            "a part of a model, or another kind; give a whole checkpoint of Stable Diffusion 1, 2 or XL, or its folder"
        )
    return "no checkpoint in the original layout of Stable Diffusion 1, 2 or XL"
