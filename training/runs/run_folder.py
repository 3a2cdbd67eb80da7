"""A run's folder: configuration, events, checkpoints, samples, state. Every file in it is whole or not there.

{output}/{name}/config.yaml               the whole configuration, presets filled in
{output}/{name}/state.json                status ("waiting", "running", "stopped", "failed", "finished"), step, steps
{output}/{name}/events.jsonl              everything the run said
{output}/{name}/checkpoints/000050/       adapter.safetensors (usable) and training.safetensors (to go on from)
{output}/{name}/samples/000050-0.png      sample pictures, step 0 (the base) included
{output}/{name}/{name}.safetensors        the finished adapter
{output}/{name}/photos.json               hash, crop and caption of each photo
{output}/{name}/photos/00.png             a small copy of each photo as it was cut
{output}/{name}/sample-now                somebody asks for sample pictures
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from hra_diffusion import library
from hra_diffusion.comparison.storage import save_photos
from hra_diffusion.errors import UserError
from hra_diffusion.files import atomic_path, make_folder, read_json, remove, save_tensors, validated_name, write_text
from hra_diffusion.generation.png import read_image
from training import config as configs
from training.config import TrainConfig
from training.data.dataset import load_dataset
from training.runs.locks import LOCK_TIMEOUT

FILES = ("state.json", "config.yaml")
"""A folder with one of these is a run's."""


class RunError(UserError):
    """A run can't be started, resumed or found: why, and what to do."""


@dataclass(frozen=True)
class Run:
    """The folder of one run."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def adapter(self) -> Path:
        """Where the finished adapter is."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def config(self) -> TrainConfig:
        return configs.read_run(self.folder / "config.yaml")

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end and its adapter is there."""
        return self.adapter.is_file() and self.state["status"] == "finished"

    @property
    def state(self) -> dict[str, Any]:
        """Status and step as last written; from the other files if state.json is missing or damaged."""
        kept = read_json(self.folder / "state.json")
        whole = isinstance(kept, dict) and {"status", "step", "steps"} <= kept.keys()
        return kept if whole else self._state_from_files()

    def _state_from_files(self) -> dict[str, Any]:
        step = max((int(folder.name) for folder in self.checkpoints()), default=0)
        try:
            steps = self.config.steps
        except UserError as error:
            return {"status": "failed", "step": step, "steps": step, "reason": str(error)}
        return {"status": "finished" if self.adapter.is_file() else "running", "step": step, "steps": steps}

    @property
    def photos(self) -> list[dict[str, Any]] | None:
        """Hash, crop, frame and caption of each photo the run began with (earlier versions kept no frame); None if that
        file is missing or damaged."""
        return read_json(self.folder / "photos.json")

    def write_state(self, status: str, step: int, steps: int, **more: Any) -> None:
        """Replace the state, atomically."""
        write_text(self.folder / "state.json", json.dumps({"status": status, "step": step, "steps": steps, **more}))

    def fail(self, reason: str) -> None:
        """Mark the run as failed at the step it had reached."""
        state = self.state
        self.write_state("failed", state["step"], state["steps"], reason=reason)

    def begin(self, config: TrainConfig, photos: list[dict[str, Any]], resume: bool) -> None:
        """Write what a new run starts from, or check that a resumed one starts from the same. Call it while locked.

        A run that never reached a checkpoint holds nothing to lose: it starts over, its samples and its log with it.
        Raises RunError.
        """
        if self.checkpoints():
            self.require_resumable(config, resume)
            if (kept := self.photos) is not None and not _same_photos(photos, kept):
                raise RunError(f"the photos or captions of {self.folder} have changed since; start a new run")
            self.write_state("running", self.state["step"], config.steps)
            before = self.config
            config = before.model_copy(update={"photos": config.photos, "boxes": config.boxes})
        else:
            self.require_free()
            for stale in ("samples", "events.jsonl", "sample-now", "photos"):
                remove(self.folder / stale)
            self.write_state("running", 0, config.steps)
            before = None
        if self.photos != photos:
            write_text(self.folder / "photos.json", json.dumps(photos, indent=1, ensure_ascii=False))
        if config != before:
            configs.write(config, self.folder / "config.yaml")

    def save_photos(self, photos: Sequence[Image.Image]) -> None:
        """Write small copies of the cut photos, unless they are there."""
        folder = self.folder / "photos"
        if not folder.exists():
            with atomic_path(folder) as unfinished:
                save_photos(photos, unfinished)

    def require_free(self) -> None:
        """Raises RunError if an adapter is where this run's would be, and there is no checkpoint to go on from."""
        if self.adapter.exists():
            raise RunError(f"{self.adapter} is there already; take another --name, or move it away")

    def require_resumable(self, config: TrainConfig, resume: bool) -> None:
        """Raises RunError if the run was not meant to go on, or was set up otherwise."""
        if not resume:
            raise RunError(f"{self.folder} exists already; go on with it by --resume, or take another --name")
        elsewhere = {"device", "photos", "boxes"} if self.photos else {"device"}  # photos are known by their hashes
        before, now = (c.model_dump(mode="json", exclude=elsewhere) for c in (self.config, config))
        if changed := [field for field in now if now[field] != before[field]]:
            raise RunError(
                f"{self.folder} was started with another {', '.join(changed)}; "
                f"resume with the same settings, or start a new run under another --name"
            )

    def request_samples(self) -> None:
        """Have whoever trains this run draw its sample pictures after the step at hand."""
        write_text(self.folder / "sample-now", "")

    def take_sample_request(self) -> bool:
        """Whether somebody asked for sample pictures since this was last called."""
        asked = self.folder / "sample-now"
        if not asked.exists():
            return False
        remove(asked)
        return True

    def checkpoints(self) -> list[Path]:
        """Folders of the whole checkpoints, oldest first."""
        return sorted(self.folder.glob("checkpoints/[0-9]*"))

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is or will be."""
        return self.folder / "checkpoints" / f"{step:06d}"

    def sample(self, step: int, number: int) -> Path:
        """Where sample picture ``number`` of ``step`` is or will be."""
        return self.folder / "samples" / f"{step:06d}-{number}.png"

    def samples(self) -> dict[int, list[Path]]:
        """The sample pictures there are, by step."""
        found: dict[int, list[Path]] = {}
        for file in sorted(self.folder.glob("samples/[0-9]*-[0-9]*.png")):
            found.setdefault(int(file.name.split("-")[0]), []).append(file)
        return found

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: no other process can train under this name. Freed by the system if this process dies."""
        make_folder(self.folder)
        try:
            with FileLock(self.folder / ".lock", timeout=LOCK_TIMEOUT):
                yield
        except Timeout:
            raise RunError(f"{self.folder} is being trained by another process; wait, or take another --name") from None


def find(output: Path, name: str) -> Run | None:
    """The run called ``name`` in ``output``, if there is one."""
    run = Run(output / validated_name(name))
    return run if (run.folder / "config.yaml").is_file() else None


def run_of(adapter: Path) -> Run | None:
    """The run that wrote an adapter, a finished one or a checkpoint's, if its folder is still around the file."""
    folder = adapter.parents[2] if _is_checkpoint(adapter) else adapter.parent
    return Run(folder) if (folder / "config.yaml").is_file() else None


def _is_checkpoint(adapter: Path) -> bool:
    return adapter.name == "adapter.safetensors" and adapter.parent.parent.name == "checkpoints"


def samples_of(adapter: Path) -> list[Path]:
    """The last sample pictures of the run that wrote an adapter; of a checkpoint's, none drawn after it."""
    run = run_of(adapter)
    last = int(adapter.parent.name) if _is_checkpoint(adapter) else math.inf
    rounds = {step: files for step, files in run.samples().items() if step <= last} if run else {}
    return rounds[max(rounds)] if rounds else []


def photos_of(adapter: Path, size: int) -> list[Image.Image]:
    """The photos an adapter was trained on, cut: the small copies in its run's folder, or the photos themselves in this
    size; an empty list if there are neither."""
    run = run_of(adapter)
    if run is None:
        return []
    files = sorted((run.folder / "photos").glob("*.png"))
    if kept := [picture for file in files if (picture := read_image(file))]:
        return kept
    with contextlib.suppress(UserError):
        config = run.config
        return [photo.image for photo in load_dataset(config.photos, size, config.crop, config.boxes).photos]
    return []


def _same_photos(photos: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]]) -> bool:
    """Whether photos have all that was kept of them."""
    return len(photos) == len(kept) and all(photo | before == photo for photo, before in zip(photos, kept, strict=True))


def write_checkpoint(folder: Path, adapter: Any, training: Mapping[str, Tensor]) -> None:
    """Write a checkpoint's folder, whole or not at all. ``adapter(path)`` writes its adapter."""
    with atomic_path(folder) as unfinished:
        save_tensors(unfinished / "training.safetensors", training)
        adapter(unfinished / "adapter.safetensors")


def rename(adapter: Path, name: str) -> Path:
    """Give an adapter another name, and the run it came from: then that can still be resumed by name.

    Raises UserError for a name that can't be, or is taken.
    """
    adapter = library.rename(adapter, name)
    run = Run(adapter.parent)
    if run.name == name and (run.folder / "config.yaml").is_file():
        configs.write(run.config.model_copy(update={"name": name}), run.folder / "config.yaml")
    return adapter
