"""The form of the advanced settings, generated from the fields of TrainConfig and the options of the methods."""

import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr
from pydantic.fields import FieldInfo

from hra_diffusion.adapters import registry
from training.config import TOPICS, TrainConfig

NOT_IN_FORM = (
    "name",
    "photos",
    "boxes",
    "class_noun",
    "trigger",
    "concepts",
    "add_trigger",
    "preset",
    "method",
    "options",
    "base",
    "base_revision",
    "base_variant",
    "auto_resume",
    "device",
    "dtype",
    "prediction_type",
    "rescale_zero_snr",
    "jobs",
    "storage",
    "processes",
)
"""Fields that the page shows elsewhere, or that are set when it starts."""


@dataclass(frozen=True)
class Entry:
    """A field of the form. ``methods``: the methods that have this option; empty for fields of TrainConfig."""

    name: str
    info: FieldInfo
    methods: tuple[str, ...]
    component: Any


def build() -> list[Entry]:
    """Create the fields. An empty field means the default, which is shown as its placeholder."""
    entries = []
    with gr.Accordion("Options of the method", open=True), gr.Row(equal_height=True):
        for name, (field, methods) in registry.options().items():
            entries.append(Entry(name, field, tuple(methods), _component(name, field)))
    for topic, settings in TOPICS.items():
        fields = {name: field for name, field in settings.model_fields.items() if name not in NOT_IN_FORM}
        with gr.Accordion(topic, open=False, visible=bool(fields)), gr.Row(equal_height=True):
            entries += [Entry(name, field, (), _component(name, field)) for name, field in fields.items()]
    return entries


def collect(entries: Sequence[Entry], values: Sequence[Any], method: str) -> dict[str, Any]:
    """Return the non-empty fields as settings. Options of other methods are left out."""
    settings: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for entry, value in zip(entries, values, strict=True):
        if value in (None, ""):
            continue
        if entry.methods:
            if method in entry.methods:
                options[entry.name] = value
        else:
            settings[entry.name] = _parse(_kind(entry.info), value)
    return settings | ({"options": options} if options else {})


def placeholder_updates(entries: Sequence[Entry], config: TrainConfig) -> list[Any]:
    """Return updates that show the defaults of a configuration and hide the options of other methods."""
    updates = []
    for entry in entries:
        if entry.methods and config.method not in entry.methods:
            updates.append(gr.update(visible=False))
            continue
        value = config.options.get(entry.name) if entry.methods else getattr(config, entry.name)
        updates.append(gr.update(visible=True, **_placeholder(entry, value)))
    return updates


def value_updates(entries: Sequence[Entry], settings: dict[str, Any]) -> list[Any]:
    """Return updates that fill in the settings and clear all other fields."""
    updates = []
    for entry in entries:
        value = settings.get("options", {}).get(entry.name) if entry.methods else settings.get(entry.name)
        updates.append(gr.update(value=_as_text(entry.info, value)))
    return updates


def _parse(kind: Any, value: Any) -> Any:
    """Return the text of a field as the configuration takes it: as a list of lines, a mapping, or unchanged."""
    if kind is tuple:
        return value.splitlines()
    if kind is dict:
        pairs = (line.rpartition(":") for line in value.splitlines() if line.strip())
        return {key.strip(): item.strip() for key, _, item in pairs}
    return value


def _component(name: str, field: FieldInfo) -> Any:
    label, kind = name.replace("_", " ").capitalize(), _kind(field)
    common: dict[str, Any] = {"label": label, "info": field.description, "min_width": 250, "interactive": True}
    common["elem_id"] = f"field-{name.replace('_', '-')}"
    if kind in (bool, Literal):
        choices = ["yes", "no"] if kind is bool else [str(choice) for choice in typing.get_args(_type(field))]
        return gr.Dropdown([("default", ""), *((c, c) for c in choices)], value="", **common)
    return gr.Textbox(value="", lines=3 if kind in (tuple, dict) else 1, **common)


def _type(field: FieldInfo) -> Any:
    """Return the type of a field, without None."""
    kind = field.annotation
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next(part for part in typing.get_args(kind) if part is not types.NoneType)
    return kind


def _kind(field: FieldInfo) -> Any:
    plain = _type(field)
    return typing.get_origin(plain) or plain


def _placeholder(entry: Entry, value: Any) -> dict[str, Any]:
    text = _as_text(entry.info, value)
    if _kind(entry.info) in (bool, Literal):
        choices = ["yes", "no"] if _kind(entry.info) is bool else list(typing.get_args(_type(entry.info)))
        return {"choices": [(f"default: {text or 'automatic'}", ""), *((str(c), str(c)) for c in choices)]}
    return {"placeholder": text or "automatic"}


def _as_text(field: FieldInfo, value: Any) -> str:
    if value is None:
        return ""
    if _kind(field) is bool:
        return "yes" if value in (True, "yes") else "no"
    if isinstance(value, dict):
        return "\n".join(f"{key}: {item}" for key, item in value.items())
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
