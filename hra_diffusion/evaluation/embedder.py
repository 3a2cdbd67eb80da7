"""What all models that embed images have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hra_diffusion.errors import UserError, first_line
from hra_diffusion.hub import is_hub_id
from hra_diffusion.libraries import only_errors_logged
from hra_diffusion.models.loading import LOAD_ERRORS, LOAD_LOCK
from hra_diffusion.threads import sharing_cores

BATCH_SIZE = 64


class Embedder(Protocol):
    """A model that embeds images.

    Attributes:
        label: its name in tables and reports; it says if the model is a proxy for those of published figures.
        model: its module.
        preprocessing: what makes pixel values of images; its ``repr`` shows all settings.
    """

    label: str
    model: Any
    preprocessing: Any

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return normalized embeddings (N, d) of N images in float32 on the CPU."""
        ...


class TextEmbedder(Embedder, Protocol):
    """A model that embeds images and texts in one space."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return normalized embeddings (N, d) of N texts in float32 on the CPU."""
        ...


@torch.no_grad()
def embed(
    images: Sequence[Image.Image],
    preprocess: Callable[[Sequence[Image.Image]], Tensor],
    forward: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Tensor:
    """Return normalized embeddings (N, d) of N images, in batches; ``forward`` maps pixel values to embeddings."""
    batches = (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))
    with sharing_cores(device.type):
        rows = [forward(preprocess(batch).to(device)).float() for batch in batches]
    return F.normalize(torch.cat(rows), dim=-1).cpu()


def load_model(model_class: Any, name: str, source: str | Path, device: str, local_files_only: bool = False) -> Any:
    """Load a model of transformers in float32, for inference, from a folder or a hub id.

    Args:
        model_class: class with ``from_pretrained``.
        name: what the model is, for the error.

    Raises UserError if it is missing, damaged or incomplete. Poolers may be missing: they are not used.
    """
    try:
        with LOAD_LOCK, only_errors_logged():
            model, report = model_class.from_pretrained(
                source,
                dtype=torch.float32,
                local_files_only=local_files_only,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except LOAD_ERRORS as error:
        raise cannot_load(name, source, first_line(error)) from None
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        raise cannot_load(name, source, f"its weights lack {missing[0]}")
    return model.eval().to(device)


def cannot_load(name: str, source: str | Path, reason: str) -> UserError:
    """Return the error for a model that scores images and can't be loaded."""
    hub_id = source if is_hub_id(str(source)) else "HUB_ID"
    return UserError(
        f"{name} {source}, which scores pictures, can't be loaded: {reason.rstrip('.')}. On a machine with a "
        f"connection, get it by: hf download {hub_id} --local-dir FOLDER; then give FOLDER in its place"
    )
