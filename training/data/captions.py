"""Captions as the text encoder gets them: the subject filled in, the trigger added where it is missing."""

from collections.abc import Mapping
from pathlib import Path

from hra_diffusion.generation.subjects import mentions, with_subject
from training.config import TrainConfig
from training.runs.events import Captions


def final_caption(caption: str, trigger: str, class_noun: str, add_trigger: bool = True) -> str:
    """The caption with ``{subject}`` filled in and, if it lacks the trigger, the subject put before it.

    ("a dog sitting", "sks", "dog") gives "sks dog, a dog sitting". A caption that has the trigger as a whole word, in
    upper or lower case, is not changed: "a SKS puppy" stays as it is.
    """
    subject = f"{trigger} {class_noun}"
    if mentions(caption, trigger) or not add_trigger:
        return caption.replace("{subject}", subject)
    return with_subject(caption, subject)


def final_captions(config: TrainConfig, given: Mapping[Path, str | None]) -> Captions:
    """The captions a run is trained with, from those of the photos' caption files; None takes ``config.caption``."""
    texts = {str(path): caption or config.caption for path, caption in given.items()}
    words = config.trigger, config.class_noun
    captions = {path: final_caption(text, *words, config.add_trigger) for path, text in texts.items()}
    added = tuple(path for path, text in texts.items() if captions[path] != final_caption(text, *words, False))
    return Captions(captions, added)
