"""Subjects in prompts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hra_diffusion.errors import UserError
from hra_diffusion.generation.requests import Request
from hra_diffusion.pipeline import subject_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PLACEHOLDER = "{subject}"


def with_subjects(pipe: StableDiffusionPipeline, requests: Sequence[Request]) -> list[Request]:
    """Replace ``{subject}`` in each prompt by the subject of the request's first adapter.

    Raises UserError if it has none, or a subject that is not known.
    """
    return [
        dataclasses.replace(request, prompt=request.prompt.replace(PLACEHOLDER, _subject(pipe, request)))
        if PLACEHOLDER in request.prompt
        else request
        for request in requests
    ]


def _subject(pipe: StableDiffusionPipeline, request: Request) -> str:
    if not request.adapters:
        raise UserError(f"the prompt {request.prompt!r} needs an adapter, for its {PLACEHOLDER}; write the subject out")
    name = request.adapters[0][0]
    if subject := subject_of(pipe, name):
        return subject
    raise UserError(
        f"the prompt {request.prompt!r} needs the subject of {name!r}, which has neither trigger nor class noun; write "
        f"the subject in place of {PLACEHOLDER}"
    )


def mentions(prompt: str, words: str) -> bool:
    """Return whether the prompt contains the words as whole words, ignoring case."""
    return bool(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", prompt, re.IGNORECASE))  # no \b: it may be "[V] dog"


def without_trigger(prompt: str, trigger: str) -> str:
    """Return a prompt without a trigger as a whole word, ignoring case: "a sks dog" becomes "a dog".

    CLIP does not know the trigger; HRA's authors kept it in the texts that they scored.
    """
    return re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)\s*", "", prompt, flags=re.IGNORECASE).strip()


def with_subject(prompt: str, subject: str, class_noun: str = "") -> str:
    """Insert the subject in place of ``{subject}``, else of the first class noun, else at the start of the prompt.

    A prompt that already mentions the subject is returned as it is. Example: ("a dog in the snow", "sks dog", "dog")
    gives "a sks dog in the snow".
    """
    if "{subject}" in prompt or not subject:
        return prompt.replace("{subject}", subject)
    if mentions(prompt, subject):
        return prompt
    if class_noun and (found := re.search(rf"\b{re.escape(class_noun)}\b", prompt, re.IGNORECASE)):
        return prompt[: found.start()] + subject + prompt[found.end() :]
    return f"{subject}, {prompt}" if prompt.strip() else subject
