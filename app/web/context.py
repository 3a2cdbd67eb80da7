"""What all tabs share: the outputs folder, the queue of runs, the inference session, the visitors' folders."""

import functools
import hmac
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr

from app.inference_session import InferenceSession
from app.web.pulse import Pulse
from hra_diffusion import library, records
from hra_diffusion.adapters.adapter_file import AdapterFileError, read_info
from hra_diffusion.errors import UserError
from hra_diffusion.files import write_private
from hra_diffusion.generation.requests import Settings, complete_settings
from training.data.drafts import Draft
from training.data.photo import MIN_SIDE
from training.runs import catalog
from training.runs.queue import Queue

COOKIE = "hra_visitor"


@dataclass(frozen=True, eq=False)  # hashable by identity, for caches
class AppContext:
    """One outputs folder and one base model at a time, shared by all visitors."""

    output: Path
    session: InferenceSession
    bases: list[str]
    """Base models of the command line, and those chosen on the page since."""
    pulse: Pulse = field(default_factory=Pulse)
    """What browsers ask for to follow changes."""
    local: bool = False
    """Whether only this machine reaches the page: then visitors may choose any base model."""

    @property
    def queue(self) -> Queue:
        return Queue(self.output)

    @property
    def resolution(self) -> int:
        """Resolution of the base model in pixels, or the smallest accepted photo side until it is loaded."""
        return complete_settings(self.session.pipe, Settings()).width if self.session.loaded else MIN_SIDE

    def visitor_folder(self, request: gr.Request) -> Path:
        """Return the visitor's folder: by login, else by the browser's cookie, which ``guard`` sets.

        Its name can't be guessed and does not reveal the cookie.
        """
        visitor = f"login {request.username}" if request.username else f"cookie {request.cookies[COOKIE]}"
        return self.output / "visitors" / hmac.new(self.salt, visitor.encode(), "sha256").hexdigest()[:32]

    @functools.cached_property
    def salt(self) -> bytes:
        """Secret of this outputs folder: without it, the folder of a login could be computed from its name."""
        file = self.output / ".salt"
        if (salt := records.read_with(file, _parse_salt, None)) is None:
            salt = secrets.token_bytes(32)
            write_private(file, salt.hex())
        return salt

    def draft(self, request: gr.Request) -> Draft:
        """Return the subject that this visitor is preparing."""
        return Draft(self.visitor_folder(request) / "draft")

    def adapters(self) -> list[library.SavedAdapter]:
        """Return all finished adapters."""
        return list(library.list_adapters([self.output]))

    def rescan(self) -> None:
        """Enter what the page has just moved or copied into the index."""
        catalog.scan_runs(self.queue.index, force=True)
        catalog.scan_adapters(self.queue.index, force=True)

    def adapter_choices(self) -> list[tuple[str, str]]:
        """Return (label, key) of the finished adapters, then of every checkpoint. Damaged files are left out."""
        catalog.scan_adapters(self.queue.index)
        rows = self.queue.index.rows(
            "SELECT name, step, path FROM adapters WHERE error = '' "
            "ORDER BY step IS NOT NULL, CASE WHEN step IS NULL THEN name END COLLATE NOCASE, path"
        )
        return [(row["name"] if row["step"] is None else f"{row['name']} step {row['step']}", row["path"])
                for row in rows]  # fmt: skip

    def key(self, path: Path) -> str:
        """Return the name of a file on the page: its path in the outputs folder."""
        return path.resolve().relative_to(self.output.resolve()).as_posix()

    def adapter_path(self, key: str) -> Path:
        """Return the adapter file of a key from the page. Raises UserError for anything else, or outside the folder."""
        path, root = (self.output / key).resolve(), self.output.resolve()
        inside = path.is_relative_to(root) and not any(part.startswith(".") for part in path.relative_to(root).parts)
        if not inside or path.suffix != ".safetensors" or not path.is_file():
            raise UserError("this adapter no longer exists; reload the page")
        return path

    def subject_of(self, key: str) -> tuple[str, str]:
        """Return (subject, class noun) of an adapter, such as ("sks dog", "dog"), or empty ones for a damaged file."""
        try:
            info = read_info(self.adapter_path(key))
        except AdapterFileError:
            return "", ""
        return info.subject, info.class_noun


def _parse_salt(content: bytes) -> bytes:
    if not re.fullmatch(rb"[0-9a-f]{64}", content):
        raise ValueError("it does not hold 64 hexadecimal digits")
    return bytes.fromhex(content.decode())
