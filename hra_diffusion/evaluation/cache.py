"""Embeddings of images kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hra_diffusion.evaluation.embedder import Embedder, TextEmbedder
from hra_diffusion.files import save_tensors, tensors_hash

KEY = "embedding"


class CachedEmbedder:
    """An embedder that embeds an image once: one small safetensors file per image and model in a folder.

    The keys are the image's pixels, not its file, since the crop and orientation are the caller's, and the model's
    ``identity``. Processes may share the folder. Texts are not cached.
    """

    def __init__(self, embedder: Embedder, folder: Path):
        """Hash the weights of the model. ``folder`` is created when an embedding is saved."""
        self.embedder = embedder
        self.label, self.model, self.preprocessing = embedder.label, embedder.model, embedder.preprocessing
        self.folder = folder / identity(embedder)

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return normalized embeddings (N, d) of N images. Raises FileError if they can't be saved."""
        paths = [self.folder / f"{image_hash(image)}.safetensors" for image in images]
        images_of = dict(zip(paths, images, strict=True))
        found = {path: row for path in images_of if (row := _read(path)) is not None}
        if missing := [path for path in images_of if path not in found]:
            rows = self.embedder.embed_images([images_of[path] for path in missing])
            for path, row in zip(missing, rows, strict=True):
                save_tensors(path, {KEY: row})
                found[path] = row
        return torch.stack([found[path] for path in paths])

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return normalized embeddings (N, d) of N texts, if the model has a text encoder."""
        return cast(TextEmbedder, self.embedder).embed_texts(texts)


def identity(embedder: Embedder) -> str:
    """Return a hash of what decides an embedder's results: its class, preprocessing and weights."""
    facts = f"{type(embedder).__name__} {embedder.preprocessing} {tensors_hash(embedder.model.state_dict())}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def image_hash(image: Image.Image) -> str:
    """Return the SHA-256 of an image's size and RGB pixels in hexadecimal."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()


def _read(path: Path) -> Tensor | None:
    """Return a saved embedding; None if it is missing or damaged."""
    try:
        return load_file(path)[KEY]
    except (OSError, SafetensorError, KeyError):
        return None
