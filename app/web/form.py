"""The advanced settings as form fields, made from the metadata of the configuration and of each method's options."""

import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr
from pydantic.fields import FieldInfo

from hra_diffusion.adapters import registry
from training.config import TrainConfig

ELSEWHERE = (
    "name",
    "photos",
    "boxes",
    "class_noun",
    "trigger",
    "add_trigger",
    "preset",
    "method",
    "options",
    "base",
    "device",
    "dtype",
    "prediction_type",
    "rescale_zero_snr",
)
"""Fields that have their own place on the page, or are chosen when it is started."""


@dataclass(frozen=True)
class Entry:
    """One field of the form. ``methods``: those that have it, for an option of methods; empty for the run's own."""

    name: str
    info: FieldInfo
    methods: tuple[str, ...]
    component: Any


def build() -> list[Entry]:
    """Lay all fields out; empty ones mean the preset's value, which they show."""
    entries = []
    with gr.Row(equal_height=True):
        for name, (field, methods) in registry.options().items():
            entries.append(Entry(name, field, tuple(methods), _component(name, field)))
    with gr.Row(equal_height=True):
        for name, field in TrainConfig.model_fields.items():
            if name not in ELSEWHERE:
                entries.append(Entry(name, field, (), _component(name, field)))
    return entries


def collect(entries: Sequence[Entry], values: Sequence[Any], method: str) -> dict[str, Any]:
    """The filled-in fields as values of a configuration; options only those of the method."""
    given: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for entry, value in zip(entries, values, strict=True):
        if value in (None, ""):
            continue
        if entry.methods:
            if method in entry.methods:
                options[entry.name] = value
        else:
            given[entry.name] = value.splitlines() if _kind(entry.info) is tuple else value
    return given | ({"options": options} if options else {})


def refreshed(entries: Sequence[Entry], config: TrainConfig) -> list[Any]:
    """Updates that show what empty fields stand for under this configuration, and hide other methods' options."""
    updates = []
    for entry in entries:
        if entry.methods and config.method not in entry.methods:
            updates.append(gr.update(visible=False))
            continue
        value = config.options.get(entry.name) if entry.methods else getattr(config, entry.name)
        updates.append(gr.update(visible=True, **_stand_in(entry, value)))
    return updates


def filled(entries: Sequence[Entry], given: dict[str, Any]) -> list[Any]:
    """Updates that put a configuration's given values into the fields, and empty the others."""
    updates = []
    for entry in entries:
        value = given.get("options", {}).get(entry.name) if entry.methods else given.get(entry.name)
        updates.append(gr.update(value=_as_text(entry.info, value)))
    return updates


def _component(name: str, field: FieldInfo) -> Any:
    label, kind = name.replace("_", " ").capitalize(), _kind(field)
    common: dict[str, Any] = {"label": label, "info": field.description, "min_width": 250, "interactive": True}
    common["elem_id"] = f"field-{name.replace('_', '-')}"
    if kind in (bool, Literal):
        choices = ["yes", "no"] if kind is bool else [str(choice) for choice in typing.get_args(_plain(field))]
        return gr.Dropdown([("as the preset says", ""), *((c, c) for c in choices)], value="", **common)
    return gr.Textbox(value="", lines=3 if kind is tuple else 1, **common)


def _plain(field: FieldInfo) -> Any:
    """The field's type without "or None"."""
    kind = field.annotation
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next(part for part in typing.get_args(kind) if part is not types.NoneType)
    return kind


def _kind(field: FieldInfo) -> Any:
    plain = _plain(field)
    return typing.get_origin(plain) or plain


def _stand_in(entry: Entry, value: Any) -> dict[str, Any]:
    text = _as_text(entry.info, value)
    if _kind(entry.info) in (bool, Literal):
        choices = ["yes", "no"] if _kind(entry.info) is bool else list(typing.get_args(_plain(entry.info)))
        return {"choices": [(f"default: {text or 'automatic'}", ""), *((str(c), str(c)) for c in choices)]}
    return {"placeholder": text or "automatic"}


def _as_text(field: FieldInfo, value: Any) -> str:
    if value is None:
        return ""
    if _kind(field) is bool:
        return "yes" if value in (True, "yes") else "no"
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
