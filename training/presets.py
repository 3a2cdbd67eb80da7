"""Default values of training settings by base model family, preset, method and optimiser.

The learning rates for toybox were chosen by ``benchmarks/sweep.py`` (table: ``benchmarks/results/sweep.md``). Those for
Stable Diffusion 1 are the papers' (arXiv 2106.09685, 2405.17484, 2505.16531, 2406.11909) and have not been measured
here. Stable Diffusion 2 and XL use the same values: none are published for these settings.
"""

from typing import Any

from hra_diffusion.adapters import methods as _methods  # noqa: F401  (registers the methods)
from hra_diffusion.models.sources import base_version

PRESETS = ("quick", "balanced", "best")

_COMMON = {"weight_decay": 1e-2, "prior_loss_weight": 1.0, "train_text_encoder": False}
_PRESET: dict[str, dict[str, dict[str, Any]]] = {
    "toybox": {
        # class images take half of every step; short runs spend it better on the subject
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
        # weight decay would make reflections rotate faster, and pull the magnitudes of SHOFT from 1 towards 0
        "hra": {"learning_rate": 0.7e-3, "weight_decay": 0.0, "options": {"rank": 16}},
        "hoft": {"learning_rate": 0.7e-3, "weight_decay": 0.0, "options": {"rank": 16}},
        "shoft": {"learning_rate": 0.7e-3, "weight_decay": 0.0, "options": {"rank": 16}},
        # not swept: DoRA as LoRA, blocks at about the angle per step of HRA's reflections. On one subject OFT shows it
        # in .62 .69 .69 .62 of the images at half to four times its rate, BOFT in .69 .85 at its rate and twice; at
        # four times BOFT loses the prompts' scenes
        "dora": {"learning_rate": 2e-3, "options": {"rank": 16}},
        "oft": {"learning_rate": 0.5e-3, "weight_decay": 0.0, "options": {"rank": 16}},
        "boft": {"learning_rate": 1e-3, "weight_decay": 0.0, "options": {"rank": 8}},
    },
    "sd1": {
        "lora": {"learning_rate": 1e-4, "options": {"rank": 4}},
        "moslora": {"learning_rate": 1e-4, "options": {"rank": 4}},
        "hra": {"learning_rate": 1e-4, "options": {"rank": 8, "orthogonality": 1e-3}},
        "hoft": {"learning_rate": 5e-4, "options": {"rank": 4}},
        "shoft": {"learning_rate": 5e-4, "options": {"rank": 4}},
        # DoRA as LoRA; those of OFT and BOFT are neither measured nor from a source that could be checked
        "dora": {"learning_rate": 1e-4, "options": {"rank": 4}},
        "oft": {"learning_rate": 6e-5, "options": {"rank": 32}},
        "boft": {"learning_rate": 3e-5, "weight_decay": 0.0, "options": {"rank": 8}},
    },
}
_COMBINATION: dict[tuple[str, str, str], dict[str, Any]] = {
    # takes as long as 280 steps of HOFT, since a step of HRA is faster; the gain is small
    ("toybox", "balanced", "hra"): {"steps": 360, "checkpoint_every": 90, "sample_every": 180},
}
_BASE: dict[str, dict[str, Any]] = {
    "toybox": {
        "lr_scheduler": "cosine",
        "batch_size": 8,
        "num_class_images": 32,
        # attention layers alone are too few in a tiny base model to learn a new shape
        "targets": "attention+feed-forward",
        # at the learning rate of the UNet the text encoder forgets the scenes
        "train_text_encoder": True,
        "text_encoder_lr_scale": 0.3,
        # as in the training of the base model: noisy timesteps determine the outlines
        "timestep_bias": 0.65,
        # the standard formula gives weight 0 to pure noise, where this base model determines the composition
        "min_snr_formula": "plus-one",
        "flip": True,
        "caption_dropout": 0.0,
        # a base model of squares only
        "crop": "smart",
    },
    "sd1": {
        "lr_scheduler": "linear",
        "min_snr_formula": "standard",
        "flip": False,
        # the share of ai-toolkit's examples; 0.1 in the training of Stable Diffusion 1
        "caption_dropout": 0.05,
        "crop": "bucket",
    },
}


_OPTIMIZER: dict[str, dict[str, Any]] = {
    # the learning rate is a factor on the one that Prodigy finds, which is the same for all parameters
    "prodigy": {"learning_rate": 1.0, "text_encoder_lr_scale": 1.0},
    # the average of the weights takes the place of a decay
    "schedule-free-adamw": {"lr_scheduler": "constant"},
}
_LION_RATE = 0.2
"""Lion's learning rate relative to AdamW's: 3 to 10 times lower (arXiv 2302.06675)."""
_FLOW = {"gradient_checkpointing": True, "timestep_sampling": "logit-normal"}
_VARIANTS: dict[str, dict[str, Any]] = {
    "sd2": {}, "sdxl": {"gradient_checkpointing": True}, "sd3": _FLOW, "flux2": _FLOW
}  # fmt: skip
"""Families that use the values of Stable Diffusion 1, and where they differ. The rates of the last two are not
measured."""
_REFLECTIONS = ("hra", "hoft", "shoft")
"""Methods that multiply reflections, whose number grows with the rank: at the same learning rate they change the base
model more the higher the rank is. The others are not measured at other ranks."""


def defaults(base: str, method: str, preset: str, optimizer: str = "adamw") -> dict[str, Any]:
    """Return the default values of TrainConfig fields. Methods without values of their own use those of LoRA."""
    variant = base_version(base)
    values = variant if variant in _METHOD else "sd1"
    of_method = _METHOD[values].get(method, _METHOD[values]["lora"])
    of_combination = _COMBINATION.get((values, preset, method), {})
    chosen = _COMMON | _BASE[values] | _PRESET[values][preset] | of_method | of_combination | _VARIANTS.get(variant, {})
    rate = chosen["learning_rate"] * (_LION_RATE if optimizer.startswith("lion") else 1)
    return chosen | {"learning_rate": rate} | _OPTIMIZER.get(optimizer, {})


def rank_factor(method: str, optimizer: str, preset_rank: int, rank: int) -> float:
    """Return the factor on the default learning rate at another rank than the preset's.

    It is less than 1 above the preset's rank for products of reflections: see docs/which-method.md for the measurement.
    Lower ranks are not measured and keep the rate. ``rank``: the option, whatever the ranks of single layers.
    """
    finds_rate = "learning_rate" in _OPTIMIZER.get(optimizer, {})
    return preset_rank / max(preset_rank, rank) if method in _REFLECTIONS and not finds_rate else 1.0
