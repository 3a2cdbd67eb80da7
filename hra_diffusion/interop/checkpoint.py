"""A pipeline's weights as a single-file checkpoint in the original layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors import safe_open
from torch import Tensor

from hra_diffusion.errors import UserError
from hra_diffusion.interop.checkpoint_keys import clip_state_dict, open_clip_state_dict, unet_key, vae_key
from hra_diffusion.models import families
from hra_diffusion.models.families.architectures import PREDICTION_KEY, SD1
from hra_diffusion.models.noise import NoiseProcess


def state_dict(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """All weights of a pipeline under the original keys. Raises UserError for a UNet without a place in the layout."""
    unet: Any = pipe.unet
    vae: Any = pipe.vae
    levels = len(vae.config.block_out_channels)
    tensors = {f"model.diffusion_model.{unet_key(k, unet.config)}": t for k, t in unet.state_dict().items()}
    for key, tensor in vae.state_dict().items():
        linear = ".mid_block.attentions." in key and tensor.ndim == 2  # 1×1 convolutions in the original
        tensors[f"first_stage_model.{vae_key(key, levels)}"] = tensor[..., None, None] if linear else tensor
    for prefix, encoder, open_clip in _text_encoders(pipe):
        state = {key.removeprefix("text_model."): tensor for key, tensor in encoder.state_dict().items()}
        own = {prefix + key: t for key, t in (open_clip_state_dict if open_clip else clip_state_dict)(state).items()}
        tensors |= own | (_unloaded_tensors(pipe, prefix, own) if open_clip else {})
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def noise_markers(process: NoiseProcess) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata that mark a checkpoint's noise process for ``single_file`` and other programs.

    The tensors are empty; only their keys matter. Raises UserError for a noise process without a marker.
    """
    released = DDIMScheduler(**SD1.predicting(process.prediction_type, process.zero_snr).scheduler[1])
    same_noise = len(process.betas) == len(released.betas) and torch.allclose(
        process.alphas_cumprod, released.alphas_cumprod, atol=1e-4
    )
    if not same_noise or process.prediction_type == "sample":
        raise UserError(
            "the original checkpoint layout can't describe this base's noise process: its betas are not Stable "
            "Diffusion's, or it predicts the sample; save a diffusers folder instead"
        )
    velocity = process.prediction_type == "v_prediction"
    keys = ["v_pred"] * velocity + ["ztsnr"] * process.zero_snr
    return {key: torch.empty(0) for key in keys}, {PREDICTION_KEY: "v" if velocity else "epsilon"}


def version(pipe: DiffusionPipeline) -> str:
    """The version of Stable Diffusion whose layout the checkpoint has: "SD 1", "SD 2" or "SDXL".

    Raises UserError for a base model of another family.
    """
    family = families.of(pipe)
    if family.denoiser != "unet":
        raise UserError(
            "a single file in the original layout is for Stable Diffusion 1, 2 and XL; save a diffusers folder instead"
        )
    if len(family.encoders) == 2:
        return "SDXL"
    return "SD 2" if is_open_clip(cast(Any, pipe).text_encoder) else "SD 1"


def is_open_clip(encoder: Any) -> bool:
    """Whether a text encoder is OpenCLIP's. Its activation is GELU; CLIP's is the quick approximation."""
    return encoder.config.hidden_act == "gelu"


def _text_encoders(pipe: Any) -> list[tuple[str, Any, bool]]:
    """(key prefix, text encoder, whether in OpenCLIP's layout) for each text encoder of the pipeline."""
    if version(pipe) == "SDXL":
        return [
            ("conditioner.embedders.0.transformer.", pipe.text_encoder, False),
            ("conditioner.embedders.1.model.", pipe.text_encoder_2, True),
        ]
    if is_open_clip(pipe.text_encoder):
        return [("cond_stage_model.model.", pipe.text_encoder, True)]
    return [("cond_stage_model.transformer.", pipe.text_encoder, False)]


def _unloaded_tensors(pipe: Any, prefix: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with this prefix in the base model's single file, if it still exists, that are not in ``own``.

    diffusers does not load unused weights: the last text layer and the text projection of Stable Diffusion 2.
    """
    file: Path | None = getattr(pipe, "base_file", None)
    if file is None or not file.is_file():
        return {}
    dtype = next(iter(own.values())).dtype
    with safe_open(file, "pt") as weights:
        keys = [key for key in weights.keys() if key.startswith(prefix) and key not in own]  # noqa: SIM118 (no dict)
        return {key: weights.get_tensor(key).to(dtype) for key in keys}
