"""The adapters of a folder, prepared for batches and kept in memory, least recently used first to go."""

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from app.serving.errors import ApiError
from hra_diffusion.adapters.adapter_file import AdapterFileError, read_info
from hra_diffusion.adapters.gathered import PreparedAdapter, prepare
from hra_diffusion.errors import UserError
from hra_diffusion.names import validated_name

_Version = tuple[Path, int, int, float]
"""File, modification time, size and strength of a prepared adapter."""


@dataclass(frozen=True)
class Listed:
    """An adapter of the folder. ``created``: seconds since 1970."""

    name: str
    created: int
    subject: str


class AdapterStore:
    """Adapter files ``NAME.safetensors`` and ``NAME/NAME.safetensors`` of a folder. Thread-safe.

    Args:
        folder: may change while the server runs; a file that has changed is read again.
        components: the base model's, by component.
        memory: bytes that the prepared adapters may take; the one in use may exceed it.
    """

    def __init__(self, folder: Path, components: Mapping[str, nn.Module], memory: int):
        self.folder, self.components, self.memory = folder.resolve(), components, memory
        self._kept: dict[_Version, PreparedAdapter] = {}
        self._keeping, self._preparing = threading.Lock(), threading.Lock()
        self.nbytes = 0
        """Bytes of the adapters in memory."""

    def __len__(self) -> int:
        return len(self._kept)

    def list(self) -> list[Listed]:
        """Return the adapters of the folder by name; damaged files are left out."""
        files = [*self.folder.glob("[!.]*.safetensors"), *self.folder.glob("[!.]*/[!.]*.safetensors")]
        own = {file.stem: file for file in files if file.parent == self.folder or file.parent.name == file.stem}
        found = [_listed(file, file.stat().st_mtime_ns) for _, file in sorted(own.items()) if self._is_inside(file)]
        return [listed for listed in found if listed]

    def find(self, name: str) -> Path:
        """Return the file of an adapter. Raises ApiError (404) if there is none."""
        try:
            name = validated_name(name)
        except UserError:
            raise unknown_model(name) from None
        for file in (self.folder / name / f"{name}.safetensors", self.folder / f"{name}.safetensors"):
            if self._is_inside(file):
                return file
        raise unknown_model(name)

    def get(self, name: str, strength: float) -> PreparedAdapter:
        """Return an adapter, prepared. Raises ApiError: 404 if there is none, 409 if its file can't be used here."""
        file = self.find(name)
        state = file.stat()
        version = file, state.st_mtime_ns, state.st_size, strength
        if (kept := self._use(version)) is not None:
            return kept
        with self._preparing:
            if (kept := self._use(version)) is not None:
                return kept
            try:
                prepared = prepare(file, self.components, strength)
            except AdapterFileError as error:
                text = str(error).replace(str(file), name)
                raise ApiError(409, "model_unusable", text) from None
            self._keep(version, prepared)
            return prepared

    def _use(self, version: _Version) -> PreparedAdapter | None:
        with self._keeping:
            if (kept := self._kept.pop(version, None)) is not None:
                self._kept[version] = kept
            return kept

    def _keep(self, version: _Version, prepared: PreparedAdapter) -> None:
        with self._keeping:
            self._kept[version] = prepared
            self.nbytes += prepared.nbytes
            while self.nbytes > self.memory and len(self._kept) > 1:
                self.nbytes -= self._kept.pop(next(iter(self._kept))).nbytes

    def _is_inside(self, file: Path) -> bool:
        return file.is_file() and file.resolve().is_relative_to(self.folder)


def unknown_model(name: str) -> ApiError:
    """Return the error for a model that does not exist, or that the key may not use: the two look the same."""
    return ApiError(404, "model_not_found", f"there is no model {name[:100]!r}; GET /v1/models lists yours")


@functools.lru_cache(maxsize=100_000)
def _listed(file: Path, version: int) -> Listed | None:
    try:
        return Listed(file.stem, version // 10**9, read_info(file).subject)
    except AdapterFileError:
        return None
