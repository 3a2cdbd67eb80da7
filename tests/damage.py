"""Damage a file in the ways that a full disk, a crash or a person does."""

from pathlib import Path

DAMAGED = {"empty": b"", "truncated": b'{"status": "stop', "zeros": b"\0" * 40, "missing": None}
"""Contents of a damaged file; None for a missing one."""


def damage(file: Path, content: bytes | None) -> None:
    """Replace the content of a file, or delete the file."""
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)
