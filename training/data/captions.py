"""Captions for training: ``{subject}`` replaced, and the trigger added where it is missing."""

from collections.abc import Mapping
from pathlib import Path

from hra_diffusion.generation.subjects import mentions, with_subject
from training.config import TrainConfig
from training.runs.events import Captions


def final_caption(caption: str, trigger: str, class_noun: str, add_trigger: bool = True) -> str:
    """Return the caption with ``{subject}`` replaced and, if it lacks the trigger, the subject prepended.

    ("a dog sitting", "sks", "dog") returns "sks dog, a dog sitting". A caption that contains the trigger as a whole
    word in any case, such as "a SKS puppy", is returned as it is.
    """
    subject = f"{trigger} {class_noun}"
    if mentions(caption, trigger) or not add_trigger:
        return caption.replace("{subject}", subject)
    return with_subject(caption, subject)


def final_captions(config: TrainConfig, given: Mapping[Path, str | None]) -> Captions:
    """Return the captions for training by photo, from those of the caption files. None becomes ``config.caption``."""
    texts = {str(path): caption or config.caption for path, caption in given.items()}
    subject = config.trigger, config.class_noun
    captions = {path: final_caption(text, *subject, config.add_trigger) for path, text in texts.items()}
    added = tuple(path for path, text in texts.items() if captions[path] != final_caption(text, *subject, False))
    return Captions(captions, added)
