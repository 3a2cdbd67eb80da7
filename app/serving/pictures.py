"""Pictures behind addresses: files with unguessable names, for an hour."""

import contextlib
import re
import secrets
import time
from pathlib import Path

from hra_diffusion.files import atomic_path, is_temporary, make_folder

SECONDS = 3600.0
"""How long a picture stays."""
NAME = re.compile(r"[\w-]{43}\.png", re.ASCII)


class PictureFolder:
    """A folder of pictures that whoever knows a picture's name may fetch. Several servers may share it."""

    def __init__(self, folder: Path):
        self.folder = make_folder(folder)

    def add(self, png: bytes) -> str:
        """Keep a picture, and return its name. Those that are too old are deleted, other files are not."""
        now = time.time()
        for file in self.folder.glob("*.png"):
            if not (NAME.fullmatch(file.name) or is_temporary(file.name)):
                continue
            with contextlib.suppress(FileNotFoundError):  # another server has deleted it
                if now - file.stat().st_mtime > SECONDS:
                    file.unlink()
        name = f"{secrets.token_urlsafe(32)}.png"
        with atomic_path(self.folder / name, private=True) as temporary:
            temporary.write_bytes(png)
        return name

    def find(self, name: str) -> Path | None:
        """Return the file of a picture, or None if there is none of this name."""
        file = self.folder / name
        try:
            return file if NAME.fullmatch(name) and time.time() - file.stat().st_mtime <= SECONDS else None
        except FileNotFoundError:
            return None
