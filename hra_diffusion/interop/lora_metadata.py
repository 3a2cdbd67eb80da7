"""Metadata of a LoRA file: kohya's ``ss_*`` keys and ModelSpec's ``modelspec.*`` keys.

AUTOMATIC1111 and Forge recognise the base model's version by them; AUTOMATIC1111 hides files of another version.
Sources: sd-scripts 48d368fa (train_network.py, library/sai_model_spec.py, library/model_util.py, library/sd3_utils.py);
for FLUX.2 musubi-tuner 30c658c4 (utils/sai_model_spec.py, dataset/architectures.py, networks/lora_flux_2.py).
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
_FLUX2 = {3072: "klein-4b", 4096: "klein-9b", 6144: "dev"}
"""FLUX.2's releases by the width of the transformer."""
_NETWORK_MODULES = {"SD3Transformer2DModel": "networks.lora_sd3", "Flux2Transformer2DModel": "networks.lora_flux_2"}
"""Class of the transformer -> kohya's network module of its LoRA."""


def base_version(pipe: Any) -> dict[str, str]:
    """Version and architecture of the base model; empty if it is not a known release."""
    if (release := _release(pipe)) is None:
        return {}
    version, architecture, implementation = release
    return {
        "ss_base_model_version": version,
        "ss_v2": str(version.startswith("sd_v2")),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": implementation,
    }


def _release(pipe: Any) -> tuple[str, str, str] | None:
    """kohya's version, ModelSpec's architecture and implementation."""
    model = families.denoiser(pipe)
    config, kind = model.config, type(model).__name__
    if kind == "SD3Transformer2DModel":
        dual = "5-medium" if config["dual_attention_layers"] else "5-large"
        version = dual if config["qk_norm"] else "medium"
        return version, f"stable-diffusion-3-{version}", "diffusers"
    if kind == "Flux2Transformer2DModel":
        name = _FLUX2.get(config["num_attention_heads"] * config["attention_head_dim"], "")
        version, url = f"flux_2_{name.replace('-', '_')}", "https://github.com/black-forest-labs/flux2"
        return (version, f"Flux.2-{name}", url) if name else None
    if (release := families.VERSIONS.get(config.get("cross_attention_dim"))) is None:
        return None
    version, architecture, implementation = _RELEASES[release]
    if "v" in _prediction(pipe).values() and release != "sdxl":
        version += "_v"
        architecture = "stable-diffusion-v2-768-v" if release == "sd2" else architecture
    return version, architecture, implementation


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
    module = _NETWORK_MODULES.get(type(families.denoiser(pipe)).__name__, "networks.lora")
    facts = {"ss_network_module": "lycoris.kohya" if dora else module, "ss_network_dim": str(rank),
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
