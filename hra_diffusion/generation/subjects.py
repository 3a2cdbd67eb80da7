"""Subjects in prompts."""

import re


def mentions(prompt: str, words: str) -> bool:
    """Return whether the prompt contains the words as whole words, ignoring case."""
    return bool(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", prompt, re.IGNORECASE))  # no \b: it may be "[V] dog"


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
