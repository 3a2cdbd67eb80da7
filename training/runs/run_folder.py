"""The folder of a run. Every file in it is written atomically.

{output}/{name}/config.yaml               configuration, with the values of the preset
{output}/{name}/state.json                see ``state.RunState``
{output}/{name}/events.jsonl              log of events
{output}/{name}/checkpoints/000050/       adapter.safetensors (ready for use) and, in the newest ones,
                                          training.safetensors, the training state to resume from
{output}/{name}/samples/000050-0.png      sample images; those of step 0 are from the base model
{output}/{name}/{name}.safetensors        the finished adapter
{output}/{name}/photos.json               hash, crop, frame, caption and hash of the mask of each photo
{output}/{name}/photos/00.png             small copies of the cropped photos
{output}/{name}/masks/00.png              masks of the cropped photos, by the number of the photo
{output}/{name}/sample-now                present while sample images are requested
{output}/{name}/stop                      present while the run is asked to stop
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import RootModel

from hra_diffusion import records
from hra_diffusion.comparison.storage import save_photos
from hra_diffusion.errors import UserError, first_line
from hra_diffusion.files import atomic_path, make_folder, remove, write_text
from hra_diffusion.generation.png import read_image, save_png
from training import config as configs
from training.config import EXECUTION_FIELDS, ConfigError, TrainConfig
from training.runs import identity as identities
from training.runs import leases, state
from training.runs.identity import TRAINING_STATE, Identity, PhotoRecord, pixel_hash
from training.runs.index import Index
from training.runs.state import LOG, Request, RunState

RUN_FILES = ("state.json", "config.yaml")
"""A folder with one of these files belongs to a run."""


class RunError(UserError):
    """A run can't be started, resumed or found. The message says why and what to do."""


@dataclass(frozen=True)
class Run:
    """The folder of one run."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def adapter(self) -> Path:
        """Path of the finished adapter."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def config(self) -> TrainConfig:
        """The configuration; that of the newest checkpoint, with a warning, if config.yaml can't be read.

        Raises ConfigError for invalid values, or without such a checkpoint.
        """
        path = self.folder / "config.yaml"
        try:
            values = configs.read_values(path)
        except ConfigError as error:
            if (identity := self.identity) is None:
                raise
            records.warn_once(path, f"{first_line(error)}; those in the newest checkpoint are used")
            return identity.config.model_copy(update={"name": self.name})
        try:
            return configs.parse_run(values)
        except ConfigError as error:
            if (identity := self.identity) is None:
                raise
            self._require_same(identity.config, values)
            raise ConfigError(f"{path}: {error}") from None

    @property
    def identity(self) -> Identity | None:
        """The identity in the newest checkpoint that has one."""
        return next((found for folder in reversed(self.checkpoints()) if (found := identities.read(folder))), None)

    @property
    def started_with(self) -> TrainConfig:
        """The configuration of the newest checkpoint; of config.yaml if an earlier version made the checkpoints."""
        identity = self.identity
        return identity.config if identity else self.config

    @property
    def finished(self) -> bool:
        """Whether the run has finished and its adapter exists."""
        return self.adapter.is_file() and self.state.status == "finished"

    @property
    def index(self) -> Index:
        """The index of the output folder."""
        return Index(self.folder.parent)

    @property
    def state(self) -> RunState:
        """The run's state; derived from the other files if state.json is missing or damaged."""
        return state.read(self.folder) or self._state_from_files()

    def _state_from_files(self) -> RunState:
        step = max((int(folder.name) for folder in self.checkpoints()), default=0)
        try:
            steps = self.config.steps
        except UserError as error:
            return RunState(status="failed", step=step, steps=step, reason=str(error))
        return RunState(status="finished" if self.adapter.is_file() else "running", step=step, steps=steps)

    @property
    def photo_records(self) -> list[PhotoRecord] | None:
        """The records of the photos in the newest checkpoint, else in photos.json; None if that is damaged too."""
        identity = self.identity
        return identity.photos if identity else self._listed_photos()

    def _listed_photos(self) -> list[PhotoRecord] | None:
        return records.read(self.folder / "photos.json", list[PhotoRecord], None)

    def write_state(self, status: str, step: int, steps: int, **more: Any) -> None:
        """Replace the state. A run that waits or trains keeps its place in the queue."""
        before = state.read(self.folder)
        kept = before.model_dump(include={"device", "restarts", "queued"}) if before else {}
        if status not in ("waiting", "running"):
            kept["queued"] = None
        now = {**kept, "status": status, "step": step, "steps": steps, **more}
        state.write(self.folder, RunState.model_validate(now))

    def fail(self, reason: str) -> None:
        """Mark the run as failed at its current step."""
        now = self.state
        self.write_state("failed", now.step, now.steps, reason=reason)

    def begin(self, config: TrainConfig, photos: list[PhotoRecord], resume: bool) -> None:
        """Write the files of a new run, or check that a resumed one has not changed. The run must be locked.

        A run without checkpoints starts over; its samples and log are removed. Raises RunError.
        """
        if self.checkpoints():
            self.require_resumable(config, resume)
            if (stored_photos := self.photo_records) is not None and not _same_photos(photos, stored_photos):
                raise RunError(f"the photos or captions of {self.folder} have changed; start a new run")
            self._write_running(self.state.step, config)
            stored = self.config
            config = config.model_copy(update={name: getattr(stored, name) for name in EXECUTION_FIELDS})
        else:
            self.require_free()
            for stale in ("samples", LOG, "sample-now", "photos", "masks"):
                remove(self.folder / stale)
            self._write_running(0, config)
            stored = None
        if (log := self.folder / LOG).is_dir():
            records.set_aside(log, "a folder is in its place")
        if self._listed_photos() != photos:
            write_text(self.folder / "photos.json", RootModel[list[PhotoRecord]](photos).model_dump_json(indent=1))
        if config != stored:
            configs.write(config, self.folder / "config.yaml")

    def _write_running(self, step: int, config: TrainConfig) -> None:
        queued = {}
        if config.auto_resume and self.state.queued is None:  # the queue continues it after an interruption
            queued = {"queued": time.time(), "device": config.device or ""}
        self.write_state("running", step, config.steps, **queued)

    def save_photos(self, photos: Sequence[Image.Image]) -> None:
        """Write small copies of the cropped photos, unless they exist."""
        folder = self.folder / "photos"
        if not folder.exists():
            with atomic_path(folder) as unfinished:
                save_photos(photos, unfinished)

    def save_masks(self, masks: Sequence[Image.Image | None]) -> None:
        """Write the masks of the cropped photos, unless they exist or there are none."""
        folder = self.folder / "masks"
        if any(masks) and not folder.exists():
            with atomic_path(folder) as unfinished:
                for number, mask in enumerate(masks):
                    if mask:
                        save_png(mask, unfinished / f"{number:02d}.png")

    def stored_mask(self, number: int, pixels: str) -> Image.Image:
        """Return the mask of a photo, which must have the ``pixel_hash`` ``pixels``. Raises RunError."""
        path = self.folder / "masks" / f"{number:02d}.png"
        mask = read_image(path)
        if mask is None or pixel_hash(mask := mask.convert("L")) != pixels:
            raise RunError(f"{path} is missing or damaged; start a new run with another --name")
        return mask

    def require_free(self) -> None:
        """Raise RunError if there is an adapter in the place of this run's."""
        if self.adapter.exists():
            raise RunError(f"{self.adapter} exists already; choose another --name, or move the file")

    def require_resumable(self, config: TrainConfig, resume: bool) -> None:
        """Raise RunError if ``resume`` is False, or a value that decides the weights was another one at the start."""
        if not resume:
            raise RunError(f"{self.folder} exists already; continue with --resume, or choose another --name")
        self._require_same(self.started_with, config.model_dump(mode="json"))

    def goes_on(self, config: TrainConfig) -> bool:
        """Return whether there are steps left that ``config`` asks of the finished run.

        It asks for more steps than before or, of a run that stopped early, for another ``early_stop``.
        """
        before = self.started_with
        changed = config.steps > before.steps or config.early_stop != before.early_stop
        return changed and config.steps > self.state.step

    def _require_same(self, before: TrainConfig, values: dict[str, Any]) -> None:
        if self.adapter.is_file() and isinstance(steps := values.get("steps"), int) and steps > before.steps:
            before = before.model_copy(update={"steps": steps})  # a finished run may go on
        # photos are compared by their hashes
        if changed := identities.differences(before, values, with_photos=not self.photo_records):
            raise RunError(
                f"{self.folder} was started with other values: {'; '.join(changed)}; "
                f"resume with the same settings, or start a new run with another --name"
            )

    def request(self, what: Request) -> None:
        """Ask the process that trains this run to stop or to generate samples, after its current step."""
        state.request(self.folder, what)

    def take_request(self, what: Request) -> bool:
        """Return whether there was such a request since the last call."""
        return state.take_request(self.folder, what)

    def checkpoints(self) -> list[Path]:
        """Return the folders of the complete checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("checkpoints/[0-9]*") if path.name.isdecimal())

    def states(self) -> list[Path]:
        """Return the folders of the checkpoints that hold a training state, oldest first."""
        return [folder for folder in self.checkpoints() if (folder / TRAINING_STATE).is_file()]

    def prune_states(self, keep: int) -> None:
        """Delete all training states but the newest ``keep``. The adapters of the checkpoints stay."""
        states = self.states()
        for folder in states[: max(0, len(states) - keep)]:
            with contextlib.suppress(PermissionError):  # Windows, while a program has it open: deleted the next time
                remove(folder / TRAINING_STATE)

    def checkpoint_folder(self, step: int) -> Path:
        """Return the folder for the checkpoint of a step."""
        return self.folder / "checkpoints" / f"{step:06d}"

    def sample_path(self, step: int, number: int) -> Path:
        """Return the path for a sample image of a step."""
        return self.folder / "samples" / f"{step:06d}-{number}.png"

    def samples(self) -> dict[int, list[Path]]:
        """Return the existing sample images by step."""
        by_step: dict[int, list[Path]] = {}
        files = self.folder.glob("samples/[0-9]*-[0-9]*.png")
        for file in sorted(files, key=lambda file: (len(file.name), file.name)):
            by_step.setdefault(int(file.name.split("-")[0]), []).append(file)
        return by_step

    @contextlib.contextmanager
    def locked(self) -> Iterator[str]:
        """Within the block, no other process can train this run. Yields the holder of the run's lease.

        Raises RunError if another process trains it.
        """
        make_folder(self.folder)
        with leases.held(self.index, self._resource, "train", leases.run_purpose(self.name)) as holder:
            if holder is None:
                raise RunError(f"{self.folder} is being trained by another process; wait, or choose another --name")
            yield holder

    def require_lease(self) -> None:
        """Raise LeaseError if another process has taken over the run, while this one was suspended."""
        leases.require(self.index, self._resource)

    @property
    def _resource(self) -> str:
        return f"run {self.name}"


def _same_photos(photos: Sequence[PhotoRecord], stored: Sequence[PhotoRecord]) -> bool:
    """Return whether photos agree with their stored records, which may lack the frame."""
    return len(photos) == len(stored) and all(
        dataclasses.replace(photo, frame=record.frame and photo.frame) == record
        for photo, record in zip(photos, stored, strict=True)
    )
