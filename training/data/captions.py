"""Captions for training: prefix and suffix, ``{subject}`` replaced, and the trigger added where it is missing."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from hra_diffusion.generation.subjects import mentions, with_subject
from training.config import TrainConfig
from training.runs.events import Captions
from training.settings.subject import Concept


def final_caption(caption: str, trigger: str, class_noun: str, add_trigger: bool = True) -> str:
    """Return the caption with ``{subject}`` replaced and, if it lacks the trigger, the subject prepended.

    ("a dog sitting", "sks", "dog") returns "sks dog, a dog sitting". A caption that contains the trigger as a whole
    word in any case, such as "a SKS puppy", is returned as it is.
    """
    subject = f"{trigger} {class_noun}"
    if mentions(caption, trigger) or not add_trigger:
        return caption.replace("{subject}", subject)
    return with_subject(caption, subject)


def final_captions(
    config: TrainConfig, given: Mapping[Path, str | None], concepts: Mapping[Path, int] | None = None
) -> Captions:
    """Return the captions for training by photo, from those of the caption files. None becomes the default caption.

    ``concepts``: the number of each photo's subject, by default the first. Prefix and suffix are separated by a space,
    as in kohya's trainer (kohya-ss/sd-scripts 48d368f, ``process_caption``).
    """
    captions, added = {}, []
    for path, caption in given.items():
        subject = config.subjects[(concepts or {}).get(path, 0)]
        text, names = caption or subject.caption or config.caption, (subject.trigger, subject.class_noun)
        if config.caption_prefix or config.caption_suffix:
            text = f"{config.caption_prefix} {text} {config.caption_suffix}".replace(" ,", ",").strip()
        captions[str(path)] = final_caption(text, *names, config.add_trigger)
        if captions[str(path)] != final_caption(text, *names, False):
            added.append(str(path))
    return Captions(captions, tuple(added))


def class_caption(caption: str, subjects: Iterable[Concept]) -> str:
    """Return a caption with each subject, or its trigger alone, replaced by the class noun.

    "a photo of a sks owl" becomes "a photo of an owl", "SKS, sitting" becomes "owl, sitting". ai-toolkit replaces the
    trigger in the final caption, too (ostris/ai-toolkit 27a03a9, ``diff_output_preservation_class``).
    """
    for subject in subjects:
        noun = subject.class_noun
        named = rf"(?<!\w){re.escape(subject.trigger)}(?: {re.escape(noun)})?(?!\w)"
        caption = re.sub(rf"(?<!\w)an? {named}", lambda _, noun=noun: with_article(noun), caption, flags=re.IGNORECASE)
        caption = re.sub(named, lambda _, noun=noun: noun, caption, flags=re.IGNORECASE)
    return caption


def class_prompt(class_noun: str) -> str:
    """Return the prompt for the class without the subject."""
    return f"a photo of {with_article(class_noun)}"


def with_article(noun: str) -> str:
    """Return the noun with its indefinite article: "a fox", "an owl"."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
