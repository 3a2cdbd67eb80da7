"""What a run takes where nothing is said, by base family, preset and method.

Toybox's rates are those that ``benchmarks/sweep.py`` kept for Balanced (its table: ``benchmarks/results/sweep.md``).
Stable Diffusion's are the papers' (arXiv 2106.09685, 2405.17484, 2505.16531, 2406.11909) for version 1 and are not yet
measured here; versions 2 and XL take them over, for want of published ones at these settings.
"""

from typing import Any

from hra_diffusion.adapters import methods as _methods  # noqa: F401  (registers the methods)
from hra_diffusion.models.sources import TOYBOX, base_version

PRESETS = ("quick", "balanced", "best")

_COMMON = {"weight_decay": 1e-2, "prior_loss_weight": 1.0, "train_text_encoder": False}
_FAMILY: dict[str, dict[str, dict[str, Any]]] = {
    "toybox": {
        # class images take half of every step: a tiny base spends it better on the subject, unless there is time
        "quick": {"steps": 80, "prior_loss_weight": 0.0, "checkpoint_every": 40, "sample_every": 40},
        "balanced": {"steps": 280, "prior_loss_weight": 0.0, "checkpoint_every": 70, "sample_every": 140},
        "best": {"steps": 600, "num_class_images": 64, "checkpoint_every": 100, "sample_every": 100},
    },
    "sd1": {
        "quick": {"steps": 400, "batch_size": 1, "num_class_images": 50, "checkpoint_every": 100, "sample_every": 100},
        "balanced": {
            "steps": 1000,
            "batch_size": 1,
            "num_class_images": 100,
            "checkpoint_every": 200,
            "sample_every": 200,
        },
        "best": {"steps": 2000, "batch_size": 1, "num_class_images": 200, "checkpoint_every": 250, "sample_every": 250},
    },
}
_METHOD: dict[str, dict[str, dict[str, Any]]] = {
    "toybox": {
        "lora": {"learning_rate": 2e-3, "options": {"rank": 16}},
        "moslora": {"learning_rate": 2e-3, "options": {"rank": 16}},
        # no decay: it would only turn reflections faster, and pull SHOFT's magnitudes from 1 towards 0
        "hra": {"learning_rate": 0.7e-3, "weight_decay": 0.0, "options": {"rank": 16}},
        "hoft": {"learning_rate": 0.7e-3, "weight_decay": 0.0, "options": {"rank": 16}},
        "shoft": {"learning_rate": 0.7e-3, "weight_decay": 0.0, "options": {"rank": 16}},
    },
    "sd1": {
        "lora": {"learning_rate": 1e-4, "options": {"rank": 4}},
        "moslora": {"learning_rate": 1e-4, "options": {"rank": 4}},
        "hra": {"learning_rate": 1e-4, "options": {"rank": 8, "orthogonality": 1e-3}},
        "hoft": {"learning_rate": 5e-4, "options": {"rank": 4}},
        "shoft": {"learning_rate": 5e-4, "options": {"rank": 4}},
    },
}
_EXCEPTION: dict[tuple[str, str, str], dict[str, Any]] = {
    # as many seconds as HOFT's 280, for a step of HRA is faster; what it gains is small
    ("toybox", "balanced", "hra"): {"steps": 360, "checkpoint_every": 90, "sample_every": 180},
}
_OTHER: dict[str, dict[str, Any]] = {
    "toybox": {
        "lr_scheduler": "cosine",
        "batch_size": 8,
        "num_class_images": 32,
        # a tiny base has few layers to learn a new shape with
        "targets": "attention+feed-forward",
        # at the UNet's rate it would forget the scenes
        "train_text_encoder": True,
        "text_encoder_lr_scale": 0.3,
        # as the base itself was trained: outlines are settled at noisy timesteps
        "timestep_bias": 0.65,
        # the standard formula gives pure noise no weight, where this base settles the composition
        "min_snr_formula": "plus-one",
        "flip": True,
    },
    "sd1": {"lr_scheduler": "linear", "min_snr_formula": "standard", "flip": False},
}


_FAMILIES = {"sd2": {}, "sdxl": {"gradient_checkpointing": True}}
"""Families without figures of their own: Stable Diffusion 1's, and what differs."""


def family(base: str) -> str:
    """Which defaults a base takes: "toybox", "sd1", "sd2" or "sdxl"."""
    return "toybox" if base == TOYBOX else base_version(base)


def defaults(base: str, method: str, preset: str) -> dict[str, Any]:
    """Default values of a run's fields for this base, method and preset; a method without figures takes LoRA's."""
    own = family(base)
    column = own if own in _METHOD else "sd1"
    figures = _METHOD[column].get(method, _METHOD[column]["lora"])
    exception = _EXCEPTION.get((column, preset, method), {})
    return _COMMON | _OTHER[column] | _FAMILY[column][preset] | figures | exception | _FAMILIES.get(own, {})
