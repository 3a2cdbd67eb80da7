"""Find the embedder for a name, a folder or a hub id."""

from __future__ import annotations

from pathlib import Path

from hra_diffusion.errors import UserError, first_line
from hra_diffusion.evaluation.clip import HUB_CLIP, HUB_CLIP_L14, Clip, default_source
from hra_diffusion.evaluation.dino import HUB_DINO, HUB_DINOV2, Dino
from hra_diffusion.evaluation.efficientnet import EfficientNet
from hra_diffusion.evaluation.embedder import Embedder, cannot_load
from hra_diffusion.hub import is_hub_id
from hra_diffusion.models.loading import LOAD_ERRORS
from hra_diffusion.models.sources import TOYBOX

EFFICIENTNET = "efficientnet"
SOURCES = {
    "clip": HUB_CLIP,
    "clip-l14": HUB_CLIP_L14,
    "dino": HUB_DINO,
    "dinov2": HUB_DINOV2,
    "toybox-clip": default_source(TOYBOX),
}
"""Names of models, without ``EFFICIENTNET``, which comes with a package."""
CLASSES = {"clip": Clip, "vit": Dino, "dinov2": Dino}
"""By transformers' model type."""
TYPES = {"clip": "clip", "clip-l14": "clip", "dino": "vit", "dinov2": "dinov2"}
"""The model type of a name, for models from another source."""


def find(name_or_path: str | Path, device: str = "cpu", source: str | Path | None = None) -> Embedder:
    """Load the model of a name ("efficientnet" or one of ``SOURCES``), a folder or a hub id.

    A folder is recognised by its config.json.

    Args:
        source: a folder or a hub id with the model of the name, in place of its own.

    Raises UserError if there is no such model, it is of another type, or it can't be loaded.
    """
    if name_or_path == EFFICIENTNET:
        if source:
            raise UserError(f"the weights of {EFFICIENTNET} come with a package; give {EFFICIENTNET} without a model")
        return EfficientNet(device)
    wanted = (TYPES[str(name_or_path)],) if source else tuple(CLASSES)
    source = str(source or SOURCES.get(str(name_or_path), name_or_path))
    kind = _model_type(source)
    if kind not in wanted:
        raise UserError(f"{source} is a model of type {kind!r}; {name_or_path} needs one of type {', '.join(wanted)}")
    return CLASSES[kind](source, device)


def _model_type(source: str) -> str:
    from transformers import AutoConfig

    if not Path(source).is_dir() and not is_hub_id(source):
        raise UserError(
            f"there is no metric {source!r}: not a folder, not a hub id like owner/name, and not one of "
            f"{', '.join([*SOURCES, EFFICIENTNET])}"
        )
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
    except LOAD_ERRORS as error:
        raise cannot_load("the model", source, first_line(error)) from None
