"""The kinds of work that faults hit, each a function that runs in a process of its own, and what must hold afterwards.

A work starts over, or continues, when its function is called again on the same folder.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import gradio_client
import transformers

import hra_diffusion as hra
from app.web import blocks, server
from hra_diffusion import interop, library, trash
from hra_diffusion.adapters import adapter_file
from hra_diffusion.errors import UserError
from hra_diffusion.generation.png import read_image
from training import config as configs
from training import samples
from training.data import class_images
from training.data.drafts import Draft
from training.loop import train
from training.runs import dispatch, lookup
from training.runs.queue import Queue

LOADED = (diffusers.StableDiffusionPipeline, transformers.CLIPTextModel, hra.export, hra.load, blocks.build)
"""Imported on first use otherwise, after the process has been forked."""
EXPORTS = ("kohya", "peft", "merged")


@dataclass(frozen=True)
class Inputs:
    """Files that all works read: a base model, photos, an adapter of this program and one of another."""

    folder: Path

    @property
    def base(self) -> str:
        return str(self.folder / "tiny-sd")

    @property
    def adapter(self) -> Path:
        return self.folder / "Max.safetensors"

    @property
    def foreign(self) -> Path:
        return self.folder / "foreign.safetensors"


def run_config(inputs: Inputs, **changes) -> configs.TrainConfig:
    values = {"name": "Rex", "photos": [str(inputs.folder / "photos")], "class_noun": "dog", "base": inputs.base,
              "device": "cpu", "resolution": 64, "steps": 8, "batch_size": 2, "checkpoint_every": 2,
              "num_class_images": 2, "sample_every": 4, "sample_prompts": ["a {subject}"], "method": "lora",
              "learning_rate": 1e-2, "train_text_encoder": False}  # fmt: skip
    return configs.parse(values | changes)


def do_train(inputs: Inputs, output: Path, name: str = "Rex") -> None:
    train(run_config(inputs, name=name), output, resume=True)


def do_export(inputs: Inputs, output: Path) -> None:
    pipe = hra.load_base(inputs.base, "cpu")
    info = hra.load(pipe, inputs.adapter)
    for form in EXPORTS:
        target = output / (form if form == "peft" else f"{form}.safetensors")
        if not target.exists():  # an export overwrites nothing
            hra.export(pipe, info.name, form, target, info=info)


def do_import(inputs: Inputs, output: Path) -> None:
    interop.import_adapter(hra.load_base(inputs.base, "cpu"), inputs.foreign, output / "New", "New")
    if not any(saved.info.name.startswith("Imported") for saved in library.list_adapters([output])):
        library.add_file(inputs.adapter, library.new_folder("Imported", output))


def do_queue(inputs: Inputs, output: Path) -> None:
    """Train a run of the queue. A process that trains it survives the death of this one, the worker."""
    queue = Queue(output)
    if "Rex" not in {job.run.name for job in queue.jobs()}:
        queue.add(run_config(inputs))
    while queue.job("Rex").status != "finished":
        queue.restore_interrupted()
        dispatch.dispatch(queue.index, "cpu")
        time.sleep(0.1)


def do_page(inputs: Inputs, output: Path) -> None:
    """Serve the page. Add photos to a draft, generate images, import an adapter, delete and restore another one."""
    page = server.serve(output, [inputs.base], "cpu", "float32", port=free_port(), block=False)
    draft = Draft(output / "visitors" / "a" / "draft")
    photos, listed = sorted((inputs.folder / "photos").glob("*.jpg")), {photo.file for photo in draft.read().photos}
    draft.add([photo for photo in photos if photo.name not in listed])
    draft.save_values(noun="dog")
    generate(page.local_url)
    do_import(inputs, output)
    if not trash.keys(output):
        trash.move_to_trash(output / "New", output)
    trash.restore(trash.keys(output)[0], output)
    page.close()


def generate(address: str) -> None:
    """Generate an image through the page's API."""
    values = [], "a dog", 1, 0, True, "", 2, None, "dpm++", None, None, "compose", 1, 1, 1, 1
    gradio_client.Client(address, verbose=False).predict(*values, api_name="/generate")


def free_port() -> int:
    """Return a port that no program uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def content(path: Path) -> set[tuple[str, bytes]]:
    """Return the names and data of the adapters and photos that a finished work leaves.

    The number of a name in use is left out.
    """
    adapters = {(file.name.replace(" 2", ""), tensor_bytes(file)) for file in files(path)}
    return adapters | {(photo.name, photo.read_bytes()) for photo in path.glob("visitors/*/draft/photos/*")}


def files(path: Path) -> list[Path]:
    found = path.rglob("*.safetensors")
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]


def tensor_bytes(file: Path) -> bytes:
    data = file.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def read(file: Path) -> None:
    """Read a file of tensors, and all of it if it is an adapter of this program. Raises AdapterFileError."""
    with adapter_file.open_safetensors(file) as opened:
        own = (opened.metadata() or {}).get("format") == adapter_file.FORMAT
    if own:
        adapter_file.read(file)


def whole(output: Path) -> bool:
    """Return whether every file that is not a temporary one can be read.

    A run that outlives the killed process trains on, and deletes the training states of its earlier checkpoints.
    """
    for file in files(output):
        try:
            read(file)
        except UserError:
            if file.exists():
                raise
    list(library.list_adapters([output]))
    for folder in output.glob("[!.]*/"):
        if run := lookup.find(output, folder.name):
            _ = run.config, run.state, run.photo_records
    for image in output.glob("visitors/*/pictures/*.png"):
        read_image(image)
    for draft in output.glob("visitors/*/draft"):
        Draft(draft).photos(64)
    return True


WORKS: dict[str, Callable[[Inputs, Path], None]] = {
    "train": do_train,
    "export": do_export,
    "import": do_import,
    "queue": do_queue,
    "page": do_page,
}


def child(work: str, inputs: Inputs, output: Path, started, limit: int = 0, user: int = 0) -> None:
    """Do a work in a child process. ``limit``: largest file that it may write, in bytes. ``user``: whose rights it has.

    Exits with 1 for an error that a person can fix.
    """
    import torch

    torch.set_num_threads(1)
    os.setpgid(0, 0)  # a signal to the group reaches the processes that this one starts
    samples.SAMPLE_STEPS = class_images.CLASS_IMAGE_STEPS = 2
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (until the process ends)
    if limit:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail instead, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if user:
        os.setuid(user)
    started.set()
    with contextlib.suppress(KeyboardInterrupt):
        try:
            WORKS[work](inputs, output)
        except UserError:
            sys.exit(1)
