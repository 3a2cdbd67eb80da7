"""Trained embeddings in other programs' formats: textual inversion files, and LoRA files with ``bundle_emb`` keys.

A word of its own, such as "rex-sks", stands for the vectors in other programs, as their vocabularies stay as they are.
Sources: AUTOMATIC1111 1.10.1 (modules/textual_inversion, extensions-builtin/Lora/networks.py), diffusers 0.42.1
(loaders/textual_inversion.py).
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, cat

from hra_diffusion import pipeline
from hra_diffusion.adapters.token_embeddings import MAX_TOKENS, PARAMETER, vectors_of, vocabulary_of
from hra_diffusion.errors import UserError
from hra_diffusion.files import save_tensors
from hra_diffusion.interop.adapter_source import AdapterImportError
from hra_diffusion.models import families

BUNDLE = "bundle_emb."
"""Prefix of the keys of embeddings in a LoRA file: ``bundle_emb.{word}.{part}``."""
TRIGGERS = "hra_diffusion.triggers"
"""Metadata of a LoRA file: the trigger of each word as JSON."""
PARTS = {
    "sd": {"emb_params": "text_encoder", "string_to_param.*": "text_encoder"},
    "sdxl": {"clip_l": "text_encoder", "clip_g": "text_encoder_2"},
}
"""Tensors of a textual inversion file, with the text encoder that they are for, by family. The first one is written."""
PLACEHOLDERS = ("sks", "sts", "scm", "ssk", "shs", "utd", "uci", "wnv")
"""Rare words of one token each, which stand for imported vectors of unknown triggers."""


def _parts(pipe: DiffusionPipeline) -> dict[str, str]:
    """Return the tensors of a textual inversion file. Raises UserError for a family that has no such files here."""
    family = families.of(pipe)
    if family.name not in PARTS:
        raise UserError(f"textual inversion files are for Stable Diffusion 1, 2 and XL, not for a {family.pipeline}")
    return PARTS[family.name]


def words(pipe: DiffusionPipeline, name: str) -> dict[str, str]:
    """Return the triggers of an adapter whose embeddings are trained, by the word that stands for them elsewhere."""
    found = [vectors for model in pipeline.components(pipe).values() if (vectors := vectors_of(model, name))]
    triggers = found[0].tokens if found else {}
    # in lower case, as diffusers looks them up
    return {re.sub(r"\W+", "-", f"{name}-{trigger}").lower(): trigger for trigger in triggers}


def tensors_of(pipe: DiffusionPipeline, name: str, trigger: str, strength: float = 1.0) -> dict[str, Tensor]:
    """Return the vectors (K, d) of a trigger as the tensors of a textual inversion file."""
    parts = {component: part for part, component in reversed(_parts(pipe).items())}
    tensors = {}
    for component, part in parts.items():
        encoder = getattr(pipe, component)
        if vectors := vectors_of(encoder, name):
            own = vocabulary_of(encoder)[vectors.tokens[trigger]].float()
            tensors[part] = own.lerp(vectors.of_triggers()[trigger].detach(), strength)
    return tensors


def files(pipe: DiffusionPipeline, name: str, folder: Path) -> dict[Path, str]:
    """Return the trigger of each textual inversion file of an adapter, by the file's path in a folder."""
    return {folder / f"{word}.safetensors": trigger for word, trigger in words(pipe, name).items()}


def write(pipe: DiffusionPipeline, name: str, strength: float, triggers: Mapping[Path, str]) -> None:
    """Write the textual inversion files with these paths and triggers."""
    for file, trigger in triggers.items():
        save_tensors(file, tensors_of(pipe, name, trigger, strength))


def bundle(pipe: DiffusionPipeline, name: str, strength: float) -> dict[str, Tensor]:
    """Return the embeddings of an adapter as tensors of its LoRA file."""
    return {
        f"{BUNDLE}{word}.{part}": tensor
        for word, trigger in words(pipe, name).items()
        for part, tensor in tensors_of(pipe, name, trigger, strength).items()
    }


def metadata(pipe: DiffusionPipeline, names: Iterable[str]) -> dict[str, str]:
    """Return the triggers of adapters as metadata of a LoRA file."""
    found = {word: trigger for name in names for word, trigger in words(pipe, name).items()}
    return {TRIGGERS: json.dumps(found)} if found else {}


def take_bundled(pipe: DiffusionPipeline, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Remove the bundled embeddings for this family from a file's tensors and return them by word and part."""
    found: dict[str, dict[str, Tensor]] = {}
    for key in [key for key in tensors if key.startswith(BUNDLE)]:
        word, _, part = key.removeprefix(BUNDLE).partition(".")
        if part in PARTS.get(families.of(pipe).name, {}):
            found.setdefault(word, {})[part] = tensors.pop(key)
    return found


def read_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts of a textual inversion file. diffusers' own files name their only tensor by its word."""
    known = {part for parts in PARTS.values() for part in parts}
    if len(tensors) == 1 and not known & tensors.keys():
        return {"emb_params": next(iter(tensors.values()))}
    return dict(tensors)


def imported(
    pipe: DiffusionPipeline, embeddings: Mapping[str, Mapping[str, Tensor]], triggers: Mapping[str, str], source: str
) -> tuple[dict[str, dict[str, list[int]]], dict[str, Tensor]]:
    """Convert the embeddings of another program's file for a pipeline.

    Each word gets its trigger of ``triggers`` if that has as many tokens as the word has vectors, or else a rare word,
    repeated for each vector.

    Args:
        embeddings: vectors (K, d) by word and part.
        triggers: triggers by word.
        source: the file, for errors.

    Returns token ids by component and trigger, and tensors by their key in the adapter file. Raises AdapterImportError
    for embeddings of another family, or of another size, and UserError for a pipeline without such files.
    """
    parts, tokenizer = _parts(pipe), families.tokenizer(pipe)
    tokens: dict[str, dict[str, list[int]]] = {}
    vectors: dict[str, list[Tensor]] = {}
    order = sorted(embeddings, key=lambda word: list(triggers).index(word) if word in triggers else len(triggers))
    for number, word in enumerate(order):
        by_part = embeddings[word]
        if unknown := sorted(by_part.keys() - parts.keys()):
            raise AdapterImportError(f"{source}: the embedding {word} has {unknown[0]}, which this base does not use")
        trigger = _trigger(tokenizer, triggers.get(word), {len(tensor) for tensor in by_part.values()}, number, source)
        for part, tensor in by_part.items():
            component = parts[part]
            width = vocabulary_of(getattr(pipe, component)).shape[1]
            if tensor.ndim != 2 or tensor.shape[1] != width:
                raise AdapterImportError(
                    f"{source}: the embedding {word} is {tuple(tensor.shape)}; this base takes (vectors, {width})"
                )
            tokens.setdefault(component, {})[trigger] = families.token_ids(tokenizer, trigger)
            vectors.setdefault(component, []).append(tensor.float())
    return tokens, {f"{component}.{PARAMETER}": cat(own) for component, own in vectors.items()}


def _trigger(tokenizer: Any, known: str | None, counts: set[int], number: int, source: str) -> str:
    """Return a trigger with as many tokens as there are vectors."""
    count = counts.pop()
    if counts or not 0 < count <= MAX_TOKENS or number >= len(PLACEHOLDERS):
        raise AdapterImportError(f"{source}: its embeddings can't be read; get the file again")
    if known and len(families.token_ids(tokenizer, known)) == count:
        return known
    each = max(1, len(families.token_ids(tokenizer, PLACEHOLDERS[number])))
    if count % each:
        raise AdapterImportError(f"{source}: no trigger has {count} tokens with this base's tokenizer")
    return " ".join([PLACEHOLDERS[number]] * (count // each))
