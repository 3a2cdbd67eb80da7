"""What all tabs share: the outputs folder, the queue of runs, the inference session, the visitors' folders."""

import functools
import hmac
import re
import secrets
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr

from app.inference_session import InferenceSession
from app.web import logins
from app.web.benchmark_queue import BenchmarkQueue
from app.web.drawing_queue import DrawingQueue
from app.web.limits import DEFAULTS, Limits
from app.web.pulse import Pulse
from hra_diffusion import records, trash
from hra_diffusion.adapters.adapter_file import AdapterFileError, read_info
from hra_diffusion.errors import UserError
from hra_diffusion.files import write_private
from hra_diffusion.generation.requests import Settings, complete_settings
from hra_diffusion.generation.subjects import mentions
from hra_diffusion.names import validated_name
from training.data.drafts import Draft
from training.data.photo import MIN_SIDE
from training.runs import catalog, owners
from training.runs.owners import LOCAL, Owner, Person
from training.runs.queue import Job, Queue
from training.runs.run_folder import RunError

COOKIE = "hra_visitor"
SHARE = "Share with everyone who can log in"
"""Label of the checkboxes that share a run or an adapter."""
MIN_STEPS = 4
"""Denoising steps of distilled base models."""


@dataclass(frozen=True, eq=False)  # hashable by identity, for caches
class AppContext:
    """One outputs folder and one base model at a time, shared by all visitors, as one of them sees it."""

    output: Path
    session: InferenceSession
    bases: list[str]
    """Base models of the command line, and those chosen on the page since."""
    pulse: Pulse = field(default_factory=Pulse)
    """What browsers ask for to follow changes."""
    drawings: DrawingQueue = field(default_factory=DrawingQueue)
    benchmarks: BenchmarkQueue = field(default_factory=BenchmarkQueue)
    local: bool = False
    """Whether only this machine reaches the page: then visitors may choose any base model."""
    auth: Path | None = None
    """The file of the logins, if the page requires one."""
    limits: Limits = DEFAULTS
    keep_visitors_days: float = 30.0
    """After how many days without a visit the folder of a visitor is deleted, unless the page is local."""
    cluster: dict[str, Any] = field(default_factory=dict)
    """Settings of all runs that say where they train, if not on this machine."""
    person: Person = LOCAL
    """Who sees the page (see ``for_visitor``)."""

    def for_visitor(self, request: gr.Request) -> "AppContext":
        """Return the page as the visitor of a request sees it."""
        return replace(self, person=self._person(request))

    def _person(self, request: gr.Request) -> Person:
        if self.local:
            return LOCAL
        if self.auth:
            name = unicodedata.normalize("NFC", request.username or "")
            return Person(name, is_admin=name in logins.admins(self.auth))
        return Person(f"#{self.visitor_folder(request).name}", is_guest=True)

    @property
    def may_configure(self) -> bool:
        """Whether the visitor may change the base model and the device of all. With logins these are the admins."""
        return not self.auth or self.person.is_admin

    @property
    def queue(self) -> Queue:
        return Queue(self.output)

    @property
    def resolution(self) -> int:
        """Resolution of the base model in pixels, or the smallest accepted photo side until it is loaded."""
        return complete_settings(self.session.pipe, Settings()).width if self.session.loaded else MIN_SIDE

    def cost(self, settings: Settings, pictures: int) -> int:
        """Return the pixel-steps of pictures; those of small ones until the base model is loaded."""
        full = complete_settings(self.session.pipe, settings) if self.session.loaded else settings
        return (full.width or MIN_SIDE) * (full.height or MIN_SIDE) * (full.steps or MIN_STEPS) * pictures

    def visitor_folder(self, request: gr.Request) -> Path:
        """Return the visitor's folder: by login, else by the browser's cookie, which ``guard`` sets."""
        return self._folder_of(f"login {request.username}" if request.username else f"cookie {request.cookies[COOKIE]}")

    def _folder_of(self, visitor: str) -> Path:
        """Return the folder of a login or cookie. Its name can't be guessed and does not reveal the cookie."""
        return self.output / "visitors" / hmac.new(self.salt, visitor.encode(), "sha256").hexdigest()[:32]

    def folders_of(self, owner: Owner) -> list[Path]:
        """Return the visitors' folders of an owner: on this machine alone, all of them are one person's."""
        if self.local:
            return list((self.output / "visitors").glob("*"))
        if owner.owner.startswith("#"):
            return [self.output / "visitors" / owner.owner[1:]]
        return [self._folder_of(f"login {owner.owner}")]

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

    def owner(self, path: Path) -> Owner:
        """Return the owner of a file or folder below the outputs folder."""
        return owners.read(self.output / self.key(path).split("/")[0])

    def may_share(self, owner: Owner) -> bool:
        """Whether the visitor may share what belongs to ``owner``. Without logins nothing is shared."""
        return self.auth is not None and self.person.may_change(owner)

    def share(self, folder: Path, shared: bool) -> None:
        """Let everyone who can log in see the run or adapter in a folder, or its owner alone."""
        owners.write(folder, owners.read(folder).model_copy(update={"shared": shared}))
        catalog.refresh_run(self.queue.index, folder.name)

    def binned(self, key: str) -> Owner:
        """Return the owner of something in the bin."""
        return owners.read(self.output / trash.FOLDER / key)

    def require_own_binned(self, key: str) -> None:
        """Raise UserError unless the key is that of something in the bin that the visitor may change."""
        if key not in trash.keys(self.output) or not self.person.may_change(self.binned(key)):
            raise UserError("it is not in the bin any more")

    def jobs(self, limit: int | None = None) -> list[Job]:
        """Return the runs that the visitor may see, as ``Queue.jobs``."""
        return self.queue.jobs(limit, self.person)

    def job(self, name: str) -> Job:
        """Return a run. Raises RunError, also for a run that the visitor may not see."""
        if not self.person.may_see(owners.read(self.output / validated_name(name))):
            raise self.queue.missing(name)
        return self.queue.job(name)

    def own_job(self, name: str) -> Job:
        """Return a run to change. Raises RunError, also for a run that belongs to somebody else."""
        job = self.job(name)
        if not self.person.may_change(job.owner):
            raise RunError(f"{name!r} belongs to somebody else, who shares it; only its owner can change it")
        return job

    def rescan(self) -> None:
        """Enter what the page has just moved or copied into the index."""
        self._scan(force=True)

    def _scan(self, force: bool = False) -> None:
        catalog.scan_runs(self.queue.index, force)
        catalog.scan_adapters(self.queue.index, force)

    def adapter_choices(self) -> list[tuple[str, str]]:
        """Return (label, key) of the finished adapters, then of every checkpoint, that the visitor may see.

        Damaged files are left out.
        """
        self._scan()
        condition, values = self.person.visible
        rows = self.queue.index.rows(
            "SELECT adapters.name, adapters.step, path FROM adapters JOIN folders ON folders.name = folder "
            f"WHERE error = '' AND {condition} ORDER BY adapters.step IS NOT NULL, "
            "CASE WHEN adapters.step IS NULL THEN adapters.name END COLLATE NOCASE, path",
            *values,
        )
        return [(row["name"] if row["step"] is None else f"{row['name']} step {row['step']}", row["path"])
                for row in rows]  # fmt: skip

    def library(self, search: str, limit: int) -> list[Any]:
        """Return rows of the index for the adapters, whole ones first, newest first, that the visitor may see.

        Args:
            search: words that each must occur in the name, method, base model or subject.
            limit: number of rows.
        """
        self._scan()
        condition, values = self.person.visible
        words = search.casefold().split()
        return self.queue.index.rows(
            "SELECT adapters.* FROM adapters JOIN folders ON folders.name = folder "
            f"WHERE adapters.step IS NULL AND adapters.name IS NOT NULL AND {condition}"
            f"{' AND instr(words, ?)' * len(words)} ORDER BY error != '', modified DESC LIMIT ?",
            *values,
            *words,
            limit,
        )

    def key(self, path: Path) -> str:
        """Return the name of a file on the page: its path in the outputs folder."""
        return path.resolve().relative_to(self.output.resolve()).as_posix()

    def adapter_path(self, key: str) -> Path:
        """Return the adapter file of a key from the page.

        Raises UserError for anything else, outside the folder, or that the visitor may not see.
        """
        path, root = (self.output / key).resolve(), self.output.resolve()
        inside = path.is_relative_to(root) and not any(part.startswith(".") for part in path.relative_to(root).parts)
        found = inside and path.suffix == ".safetensors" and path.is_file()
        if not found or not self.person.may_see(self.owner(path)):
            raise UserError("this adapter no longer exists; reload the page")
        return path

    def own_adapter_path(self, key: str) -> Path:
        """Return the adapter file of a key to change. Raises UserError, also if it belongs to somebody else."""
        path = self.adapter_path(key)
        if not self.person.may_change(self.owner(path)):
            raise UserError("this adapter belongs to somebody else, who shares it; only its owner can change it")
        return path

    def subject_of(self, key: str, prompt: str = "") -> tuple[str, str]:
        """Return (subject, class noun) of an adapter, such as ("sks dog", "dog"), or empty ones for a damaged file.

        Of several subjects it is the first that the prompt mentions, or else the first one.
        """
        try:
            info = read_info(self.adapter_path(key))
        except AdapterFileError:
            return "", ""
        words = [(one.trigger, one) for one in info.all_subjects] + [(one.class_noun, one) for one in info.all_subjects]
        mentioned = (subject for word, subject in words if word and mentions(prompt, word))
        subject = next(mentioned, info.all_subjects[0])
        return str(subject), subject.class_noun


def _parse_salt(content: bytes) -> bytes:
    if not re.fullmatch(rb"[0-9a-f]{64}", content):
        raise ValueError("it does not hold 64 hexadecimal digits")
    return bytes.fromhex(content.decode())
