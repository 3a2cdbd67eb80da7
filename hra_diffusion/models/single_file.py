"""Load single-file .safetensors checkpoints in the original layout, without a network.

Such a file contains all weights, but neither configuration nor vocabulary. The names and shapes of its tensors identify
its architecture (families/architectures.py). CLIP's vocabulary, which all these models share, is looked up beside the
file, then in the local hub cache, then on the hub.
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
from hra_diffusion.errors import BaseModelError, Note, shown
from hra_diffusion.models import families
from hra_diffusion.models.families.architectures import PREDICTION_KEY, RELEASED, SD2, SD2_BASE, SDXL, Architecture

UNET = "model.diffusion_model."
VOCABULARY = ("vocab.json", "merges.txt")
"""Files of CLIP's vocabulary."""
HUB_VOCABULARIES = (
    ("openai/clip-vit-large-patch14", ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer"),
    ("stabilityai/stable-diffusion-2-1", "tokenizer"),
)
"""Hub repositories, with a subfolder, that have this vocabulary. Only the first is downloaded."""
PREDICTIONS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
"""Values of ``PREDICTION_KEY``, and the prediction types they stand for in diffusers."""
SD2_ARCHITECTURES = {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"}
"""Prediction types of Stable Diffusion 2 by the metadata key "modelspec.architecture"."""
SD2_BIAS_KEY = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
SD2_BIAS_STD = 0.09


@dataclass(frozen=True)
class DetectedNoise:
    """Noise process of a checkpoint. ``note``: what is uncertain about it, if anything."""

    prediction_type: str
    zero_snr: bool
    note: str = ""


def load(path: Path, dtype: torch.dtype, prediction_type: str | None = None) -> DiffusionPipeline:
    """Load a checkpoint as a pipeline. ``prediction_type`` overrides its own.

    Raises BaseModelError if it is not a base model, if its noise process is not supported, or without a vocabulary.
    Warns (Note) if the prediction type is uncertain.
    """
    architecture = detect_architecture(path, prediction_type)
    noise = detect_noise(path, architecture, prediction_type)
    if noise.note:
        warnings.warn(noise.note, Note, stacklevel=2)
    return load_with_architecture(path, architecture.predicting(noise.prediction_type, noise.zero_snr), dtype)


def load_with_architecture(path: Path, architecture: Architecture, dtype: torch.dtype) -> DiffusionPipeline:
    """Load a checkpoint's weights into this architecture."""
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
    """Return the released architecture of a checkpoint; Stable Diffusion 2 has two, by prediction type.

    Raises BaseModelError if it has none of them.
    """
    with safe_open(path, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = file.metadata() or {}
    architecture = _architecture(path, shapes, metadata)
    if architecture is SD2 and detect_noise(path, SD2, prediction_type).prediction_type == "epsilon":
        return SD2_BASE
    return architecture


def detect_noise(path: Path, architecture: Architecture, prediction_type: str | None = None) -> DetectedNoise:
    """Return the noise process of a checkpoint; ``prediction_type`` overrides its prediction type.

    The tensor keys "v_pred" and "ztsnr" take precedence over the metadata of Stability AI's Model Metadata Standard,
    since other programs read these keys only, and merging keeps outdated metadata: ComfyUI (for SDXL,
    comfy/supported_models.py at a125cd84), AUTOMATIC1111 (pull requests 16567 and 16569), Forge. A Stable Diffusion 2
    with neither is classified by its weights; other models predict epsilon. Raises BaseModelError for an unsupported
    noise process.
    """
    with safe_open(path, "pt") as file:
        keys, metadata = set(file.keys()), file.metadata() or {}
        biases = file.get_tensor(SD2_BIAS_KEY) if SD2_BIAS_KEY in keys else torch.zeros(1)
    if {"edm_mean", "edm_std"} <= keys or "edm_vpred.sigma_max" in keys:
        raise BaseModelError(f"{path} can't be used: it has EDM's noise levels (tensors edm_…)")
    stated, note = metadata.get(PREDICTION_KEY, "").lower(), ""
    if prediction_type:
        predicted = prediction_type
    elif "v_pred" in keys:
        predicted = "v_prediction"
        if PREDICTIONS.get(stated) == "epsilon":
            note = f"{path.name}: its tensor v_pred says v_prediction, its metadata epsilon; v_prediction is used"
    elif stated in PREDICTIONS:
        predicted = PREDICTIONS[stated]
    elif stated:
        raise BaseModelError(
            f"{path} says {PREDICTION_KEY} {shown(stated)}, which is neither epsilon nor v; if that is wrong, add "
            "--prediction-type epsilon or v_prediction"
        )
    elif architecture not in (SD2, SD2_BASE):
        predicted = "epsilon"
    elif (kind := metadata.get("modelspec.architecture")) in SD2_ARCHITECTURES:
        predicted = SD2_ARCHITECTURES[kind]
    else:
        predicted, note = _prediction_from_weights(path, biases)
    zero_snr = "ztsnr" in keys
    if zero_snr and predicted != "v_prediction":
        zero_snr = False
        note = (
            f"{path.name} has the tensor ztsnr (zero terminal SNR) but predicts {predicted}, so ztsnr is ignored; if "
            "its pictures are noise, add --prediction-type v_prediction --rescale-zero-snr"
        )
    return DetectedNoise(predicted, zero_snr, note)


def _prediction_from_weights(path: Path, biases: torch.Tensor) -> tuple[str, str]:
    """Return the prediction type of a Stable Diffusion 2 that does not state it, and a note.

    ComfyUI's rule (comfy/supported_models.py at a125cd84), also used by Forge: with v_prediction, the biases of the
    first norm in the last attention block vary more.
    """
    std = float(biases.float().std(unbiased=False))
    predicted, other = ("v_prediction", "epsilon") if std > SD2_BIAS_STD else ("epsilon", "v_prediction")
    note = (
        f"{path.name} is a Stable Diffusion 2 that does not state what it predicts; {predicted} is used, by ComfyUI's "
        f"rule ({SD2_BIAS_KEY.removeprefix(UNET)} has standard deviation {std:.2f}; above {SD2_BIAS_STD} means "
        f"v_prediction). If its pictures are noise or flat, add --prediction-type {other}"
    )
    return predicted, note


def _columns(shape: list[int]) -> int:
    return shape[1] if len(shape) > 1 else 0


def _architecture(path: Path, shapes: dict[str, Any], metadata: Mapping[str, str]) -> Architecture:
    """Return the architecture by tensor names and shapes; SD2 for either Stable Diffusion 2."""
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    if first is None:
        raise BaseModelError(f"{path} is {_describe_other(shapes, metadata)}")
    if (channels := _columns(first)) != 4:
        raise BaseModelError(
            f"{path} can't be used: its UNet takes {channels} channels, not 4: an inpainting, depth or editing model, "
            "not a text-to-image model"
        )
    if any(key.startswith("conditioner.embedders.1.") for key in shapes):
        return SDXL
    if any(key.startswith("conditioner.") for key in shapes):
        raise BaseModelError(f"{path} is an SDXL refiner, not a base model")
    width = _columns(shapes.get(f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", []))
    if families.VERSIONS.get(width) not in ("sd1", "sd2"):
        raise BaseModelError(
            f"{path} is not Stable Diffusion 1, 2 or XL: its text embeddings have width {width}, not 768 or 1024"
        )
    if not any(key.startswith("cond_stage_model.") for key in shapes):
        raise BaseModelError(f"{path} has no text encoder; get the complete checkpoint, not the UNet alone")
    return RELEASED[families.VERSIONS[width]]


def load_vocabulary(path: Path, pad: str, length: int) -> CLIPTokenizer:
    """Return CLIP's tokenizer for the checkpoint at ``path``.

    ``pad``: padding token. ``length``: maximum prompt length in tokens. Raises BaseModelError if no vocabulary is
    found.
    """
    for folder in (path.parent, path.parent / "tokenizer"):
        if all((folder / name).is_file() for name in VOCABULARY):
            break
    else:
        folder = _vocabulary_from_hub(path)
    return CLIPTokenizer.from_pretrained(str(folder), pad_token=pad, model_max_length=length)


def _vocabulary_from_hub(path: Path) -> Path:
    """Return the folder of the vocabulary in the local hub cache; download it if it is not cached."""
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
        f"{path} contains no vocabulary (no single-file checkpoint does) and the hub can't be reached: put CLIP's "
        f"{' and '.join(VOCABULARY)} beside it (from the tokenizer folder of any Stable Diffusion model), or run once "
        "with a network"
    )


def _describe_other(shapes: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Describe a file without a UNet in the original layout, by its tensor names and metadata."""
    if metadata.get("format") == adapter_file.FORMAT:
        return "an adapter, not a base model: give it as --adapter"
    if adapter_keys.has_adapter_keys(shapes):
        return f"an adapter, not a base model: import it with {adapter_file.IMPORT_COMMAND}"
    if any(key.startswith(("down_blocks.", "double_blocks.", "transformer.", "joint_blocks.")) for key in shapes):
        return (
            "one component, or another kind of model; give a complete checkpoint of Stable Diffusion 1, 2 or XL, or a "
            "model folder"
        )
    return "not a checkpoint in the original layout of Stable Diffusion 1, 2 or XL"
