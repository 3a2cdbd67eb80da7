"""YAML as text: plain values only, checked for its size and its form before anything is built."""

from typing import Any

import yaml

from hra_diffusion.errors import UserError, first_line
from hra_diffusion.names import is_text

MAX_CHARACTERS, MAX_SCALAR, MAX_VALUES, MAX_DEPTH = 1_000_000, 10_000, 50_000, 8
"""Largest size of a text and of a single value in characters, number of values, and nesting of lists and mappings."""


class _Loader(yaml.CSafeLoader):
    """PyYAML's safe loader without dates: "2026-01-01" is the name of a folder."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def parse(text: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds; {} for an empty text.

    Raises UserError for malformed or too large YAML, for another value than a mapping, and for anchors, aliases and
    tags, by which a small text stands for a large value or one of another kind.
    """
    try:
        _check(text)
        values = yaml.load(text, Loader=_Loader)
    except UserError:
        raise
    except yaml.YAMLError as error:
        raise UserError(f"it is not YAML: {_place(error)}{first_line(error)}") from None
    except (ValueError, OverflowError):  # such as "0x_", or 5,000 digits
        raise UserError("a value looks like a number but can't be read as one; put it in quotes") from None
    if values is not None and not isinstance(values, dict):
        raise UserError("it holds no settings; expected lines like 'name: Rex'")
    return values or {}


def write(values: dict[str, Any]) -> str:
    """Return a mapping of plain values as YAML."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _check(text: str) -> None:
    """Raise UserError for YAML that is not of plain values or too large, by its events alone."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"it has {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed")
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if reason := _refusal(event, depth, number):
            raise UserError(f"{_line(event.start_mark)}{reason}")


def _refusal(event: Any, depth: int, number: int) -> str:
    """Return why an event of the parser is refused, or ""."""
    if isinstance(event, yaml.NodeEvent) and event.anchor:
        return "anchors (&) and aliases (*) are not allowed; write the value again"
    if getattr(event, "tag", None):
        return "tags (!) are not allowed; write the plain value"
    if depth > MAX_DEPTH:
        return f"lists and mappings are nested more than {MAX_DEPTH} deep"
    if number > MAX_VALUES:
        return f"it has more than {MAX_VALUES:,} values"
    value = getattr(event, "value", "")
    if len(value) > MAX_SCALAR:
        return f"a value has {len(value):,} characters; at most {MAX_SCALAR:,} are allowed"
    return "" if is_text(value) else "a value holds \\0 or half a character"


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return _line(mark) if mark else ""


def _line(mark: Any) -> str:
    return f"line {mark.line + 1}: "
