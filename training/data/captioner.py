"""Captions of photos written by a model of transformers, such as BLIP (arXiv 2201.12086) or Florence-2 (2311.06242)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from hra_diffusion.errors import UserError, first_line
from hra_diffusion.generation.subjects import with_subject
from hra_diffusion.hub import is_hub_id
from hra_diffusion.models.devices import device_for
from hra_diffusion.models.loading import LOAD_ERRORS, LOAD_LOCK
from hra_diffusion.threads import sharing_cores

DEFAULT = "Salesforce/blip-image-captioning-base"
"""1 GB; "florence-community/Florence-2-base" writes longer captions."""
TASKS = {"florence2": "<DETAILED_CAPTION>"}
"""The prompt of models that need one, by their type in transformers."""
MAX_TOKENS = 60


class Captioner:
    """A captioning model with its processor."""

    def __init__(self, source: str = DEFAULT, device: str | None = "cpu", local_files_only: bool = False):
        """Load from a folder or a hub id; weights must be safetensors.

        Raises UserError if it can't be loaded, and BaseModelError for a device that is not available.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        given: dict[str, Any] = {"local_files_only": local_files_only, "trust_remote_code": False}
        try:
            with LOAD_LOCK:
                model: Any = AutoModelForImageTextToText.from_pretrained(
                    source, dtype=torch.float32, use_safetensors=True, **given
                )
            self.model: Any = model.eval().to(device_for(device))
            self.processor: Any = AutoProcessor.from_pretrained(source, **given)
        except LOAD_ERRORS as error:
            raise UserError(
                f"the captioner {source} can't be loaded: {first_line(error)}. It is downloaded once from the "
                "Hugging Face hub; give another hub id or a folder with --captioner, or write the captions yourself"
            ) from None

    @torch.no_grad()
    def caption(self, image: Image.Image) -> str:
        """Return a caption of an image in one line, the most probable one."""
        given: dict[str, Any] = {"images": image.convert("RGB"), "return_tensors": "pt"}
        if task := TASKS.get(self.model.config.model_type):
            given["text"] = task
        with sharing_cores(self.model.device.type):
            ids = self.model.generate(
                **self.processor(**given).to(self.model.device), max_new_tokens=MAX_TOKENS, do_sample=False
            )
        (text,) = self.processor.batch_decode(ids, skip_special_tokens=True)
        return " ".join(text.split())


def is_local(source: str) -> bool:
    """Return whether a captioner is on this machine: a folder, or a hub id in the local cache."""
    return Path(source).is_dir() or (
        is_hub_id(source) and isinstance(try_to_load_from_cache(source, "config.json"), str)
    )


def write_captions(
    images: Sequence[Image.Image],
    class_noun: str,
    source: str = DEFAULT,
    device: str | None = "cpu",
    local: bool = False,
) -> list[str]:
    """Return a caption for each image, with ``{subject}`` in place of the class noun or, if it lacks that, before it.

    Args:
        images: RGB images.
        class_noun: "" leaves the captions as they are.
        source: folder or hub id of the captioner.
        device: "cpu", "cuda" or "mps"; None for the fastest.
        local: download nothing.

    Raises UserError if the captioner can't be loaded.
    """
    captioner = Captioner(source, device, local)
    captions = [captioner.caption(image) for image in images]
    return [with_subject(caption, "{subject}", class_noun) if class_noun else caption for caption in captions]
