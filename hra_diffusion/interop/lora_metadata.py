"""Metadata of a LoRA file: kohya's ``ss_*`` keys and ModelSpec's ``modelspec.*`` keys.

AUTOMATIC1111 and Forge recognise the base model's version by them; AUTOMATIC1111 hides files of another version.
Sources: sd-scripts 48d368fa (train_network.py, library/sai_model_spec.py, library/model_util.py).
"""

import base64
import contextlib
import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from hra_diffusion import pipeline
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.files import tensors_hash
from hra_diffusion.models import families, noise
from hra_diffusion.models.families.architectures import PREDICTION_KEY

THUMBNAIL = 256
"""Longer side of a thumbnail in pixels."""
_RELEASES = {
    "sd1": ("sd_v1", "stable-diffusion-v1", "diffusers"),
    "sd2": ("sd_v2", "stable-diffusion-v2-512", "diffusers"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "https://github.com/Stability-AI/generative-models"),
}
"""Version of Stable Diffusion -> kohya's version, ModelSpec's architecture and implementation."""


def base_version(pipe: Any) -> dict[str, str]:
    """Version and architecture of the base model; empty if it is not Stable Diffusion 1, 2 or XL."""
    width, velocity = families.denoiser(pipe).config.get("cross_attention_dim"), "v" in _prediction(pipe).values()
    if (release := families.VERSIONS.get(width)) is None:
        return {}
    version, architecture, implementation = _RELEASES[release]
    if velocity and release == "sd2":
        architecture = "stable-diffusion-v2-768-v"
    return {
        "ss_base_model_version": version + ("_v" if velocity and release != "sdxl" else ""),
        "ss_v2": str(release == "sd2"),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": implementation,
    }


def model_spec(
    pipe: Any, name: str, info: AdapterInfo | None, sample: Path | None, tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """ModelSpec's keys of a file with these tensors, except ``base_version``. The thumbnail shows ``sample``."""
    size = _resolution(pipe, info)
    facts = {
        "title": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "resolution": f"{size}x{size}",
        "hash_sha256": f"0x{tensors_hash(tensors)}",
        "thumbnail": _thumbnail(sample) if sample else "",
    }
    return {f"modelspec.{key}": value for key, value in facts.items() if value} | _prediction(pipe)


def kohya(pipe: Any, name: str, info: AdapterInfo | None, rank: int, dora: bool) -> dict[str, str]:
    """kohya's keys, except ``base_version``. A DoRA names LyCORIS' network module, since kohya's has no magnitudes."""
    facts = {"ss_network_module": "lycoris.kohya" if dora else "networks.lora", "ss_network_dim": str(rank),
             "ss_network_alpha": str(float(rank)), "ss_output_name": name,
             "ss_sd_model_name": pipeline.base_name_of(pipe)}  # fmt: skip
    if dora:
        facts["ss_network_args"] = '{"algo": "lora", "dora_wd": "True", "wd_on_output": "True"}'
    if info and info.subject:
        facts["ss_tag_frequency"] = json.dumps(
            {name: {str(subject): info.training.get("photos", 1) for subject in info.all_subjects}}
        )
    if info and "resolution" in info.training:
        size = _resolution(pipe, info)
        facts["ss_resolution"] = str((size, size))
    return facts


def _resolution(pipe: Any, info: AdapterInfo | None) -> int:
    """Side of the training images in pixels, by default the base model's."""
    own = families.default_side(pipe)
    return info.training.get("resolution") or own if info else own


def _prediction(pipe: Any) -> dict[str, str]:
    """ModelSpec's prediction type; it has none for models that predict the sample."""
    names = {"epsilon": "epsilon", "v_prediction": "v"}
    return (
        {PREDICTION_KEY: names[kind]}
        if (kind := noise.process_settings(pipe.scheduler)["prediction_type"]) in names
        else {}
    )


def _thumbnail(path: Path) -> str:
    """The image as a small JPEG in a data URL, or "" if it can't be read."""
    jpeg = io.BytesIO()
    with contextlib.suppress(OSError), Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(jpeg, "JPEG", quality=85)
        return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
    return ""
