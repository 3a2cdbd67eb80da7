"""Faults that a run, an export or an import survives. Each returns a row of the table in docs/reliability.md."""

import contextlib
import functools
import multiprocessing
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT, save_photos, stir, tiny_pipe
from damage import GARBAGE, damage
from faults.work import WORKS, Inputs, child, content, run_config, whole

import hra_diffusion as hra
from hra_diffusion import library, trash
from hra_diffusion.adapters import adapter_file, attachment
from hra_diffusion.comparison import votes
from hra_diffusion.comparison.votes import Vote
from hra_diffusion.errors import UserError
from training.data.drafts import Draft
from training.runs import calibration, lookup, progress
from training.runs.run_folder import Run

os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])  # of the server, which imports ``work``
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["faults.work"])
NOBODY = 65534


@dataclass(frozen=True)
class Row:
    """A row of the table. ``lost``: tries after which something was lost. ``seconds``: the longest recovery."""

    fault: str
    tries: int
    lost: int
    seconds: float


def make_inputs(folder: Path) -> Inputs:
    """Write what all works read."""
    inputs = Inputs(folder)
    tiny_pipe().save_pretrained(inputs.base)
    (folder / "photos").mkdir()
    save_photos(folder / "photos", 3)
    pipe = tiny_pipe()
    attachment.attach(pipe.unet, "lora", {"rank": 4}, name="Max")
    stir(attachment.adapter_parameters(pipe.unet, "Max").values(), by=1.0)
    info = adapter_file.attached_info({"unet": pipe.unet}, "Max", base="tiny-sd")
    adapter_file.save(inputs.adapter, {"unet": pipe.unet}, info)
    hra.export(pipe, "Max", "kohya", inputs.foreign, info=info)
    return inputs


class Bench:
    """Runs works in child processes, in folders below ``root``."""

    def __init__(self, root: Path):
        self.inputs, self.root = make_inputs(root / "inputs"), root
        self._number = 0
        self.expected: dict[str, set[tuple[str, bytes]]] = {}
        self.seconds: dict[str, float] = {}

    def folder(self) -> Path:
        self._number += 1
        return self.root / f"{self._number:03d}"

    def start(self, work: str, output: Path, **limits: int) -> multiprocessing.Process:
        """Start a work and return when its imports are done."""
        started = CONTEXT.Event()
        process = CONTEXT.Process(target=child, args=(work, self.inputs, output, started), kwargs=limits)
        process.start()
        assert started.wait(120)
        return process  # type: ignore[return-value]

    def finish(self, work: str, output: Path) -> tuple[bool, float]:
        """Do a work to its end. Return whether it left what an undisturbed one does, and its seconds."""
        start = time.monotonic()
        process = self.start(work, output)
        process.join(300)
        seconds = time.monotonic() - start
        return process.exitcode == 0 and content(output) == self.reference(work), seconds

    def reference(self, work: str) -> set[tuple[str, bytes]]:
        if work not in self.expected:
            output, start = self.folder(), time.monotonic()
            process = self.start(work, output)
            process.join(300)
            assert process.exitcode == 0, work
            self.seconds[work] = time.monotonic() - start
            self.expected[work] = content(output)
        return self.expected[work]


def kill(bench: Bench, work: str, tries: int, seed: int = 0) -> Row:
    """Kill the work at random moments, every second time with the processes that it has started, then do it again."""
    bench.reference(work)
    rng, lost, longest = random.Random(seed), 0, 0.0
    for number in range(tries):
        output = bench.folder()
        process = bench.start(work, output)
        process.join(rng.uniform(0, bench.seconds[work]))
        if number % 2 and process.is_alive():
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join()
        sound, seconds = recover(bench, work, output)
        lost, longest = lost + (not sound), max(longest, seconds)
    return Row(f"`kill -9` at a random moment of {work}", tries, lost, longest)


def recover(bench: Bench, work: str, output: Path) -> tuple[bool, float]:
    """Return whether all files are whole and the work, done again, leaves what it should; and the seconds it takes."""
    try:
        sound = whole(output)
    except Exception:
        sound = False
    same, seconds = bench.finish(work, output)
    return sound and same, seconds


def full_disk(bench: Bench, work: str, sizes: list[int]) -> Row:
    """Let every write beyond a size fail, as on a full disk; then do the work again without the limit."""
    lost, longest = 0, 0.0
    for size in sizes:
        output = bench.folder()
        process = bench.start(work, output, limit=size)
        process.join(300)
        sound, seconds = recover(bench, work, output)
        lost, longest = lost + (process.exitcode not in (0, 1) or not sound), max(longest, seconds)
    return Row(f"no file larger than {sizes[0] // 1000} to {sizes[-1] // 1000} kB: {work}", len(sizes), lost, longest)


def read_only(bench: Bench, work: str) -> Row:
    """Do the work as another user in a folder that it can't write, then as oneself."""
    output = bench.folder()
    output.mkdir()
    output.chmod(0o555)
    process = bench.start(work, output, user=NOBODY if os.getuid() == 0 else 0)
    process.join(300)
    sound = process.exitcode == 1 and not any(output.iterdir())
    output.chmod(0o755)
    recovered, seconds = recover(bench, work, output)
    return Row(f"read-only folder: {work}", 1, int(not (sound and recovered)), seconds)


def two_at_once(bench: Bench, work: str, tries: int) -> Row:
    """Do the work twice at the same time on one folder."""
    lost, longest = 0, 0.0
    bench.reference(work)
    for _ in range(tries):
        output = bench.folder()
        processes = [bench.start(work, output) for _ in range(2)]
        for process in processes:
            process.join(300)
        codes = sorted(process.exitcode or 0 for process in processes)
        sound, seconds = recover(bench, work, output)
        lost, longest = lost + (codes not in ([0, 0], [0, 1]) or not sound), max(longest, seconds)
    return Row(f"two at once on one folder: {work}", tries, lost, longest)


def garbage(bench: Bench, kinds: list[str]) -> Row:
    """Replace each file that is kept by garbage, and look at everything: no error but those that a person can fix."""
    whole_folder = kept_files(bench)
    tries = lost = 0
    longest = 0.0
    for file in sorted(path.relative_to(whole_folder) for path in whole_folder.rglob("*") if path.is_file()):
        for kind in kinds:
            copy = bench.folder()
            shutil.copytree(whole_folder, copy)
            damage(copy / file, GARBAGE[kind])
            start = time.monotonic()
            errors = list(look_at_everything(copy))
            longest = max(longest, time.monotonic() - start)
            tries, lost = tries + 1, lost + bool(errors)
            for error in errors:
                print(f"{kind} in {file}: {error}")
            shutil.rmtree(copy)
    return Row("garbage in a file that is kept", tries, lost, longest)


def kept_files(bench: Bench) -> Path:
    """Return a folder with a stopped run, an adapter, a draft, a vote, a measurement and an item in the bin."""
    output = bench.folder()
    process = bench.start("train", output)
    process.join(300)
    run = Run(output / "Rex")
    run.adapter.unlink()
    run.write_state("stopped", 8, 8)
    library.add_file(bench.inputs.adapter, library.new_folder("Imported", output))
    trash.move_to_trash(library.add_file(bench.inputs.adapter, library.new_folder("Imported", output)), output)
    draft = Draft(output / "visitors" / "a" / "draft")
    draft.add(sorted((bench.inputs.folder / "photos").glob("*.jpg")))
    draft.save_values(noun="dog")
    votes.record(Vote("subject", "HRA", "LoRA", at=0), output / "visitors" / "a" / "compare" / "0001")
    measured = calibration.result_path(output, run_config(bench.inputs))
    measured.parent.mkdir(parents=True)
    calibration.save(calibration.Calibration(step=1.0), measured)
    for large in [*output.rglob("samples"), *output.rglob(".cache"), *output.rglob(".lock")]:
        shutil.rmtree(large) if large.is_dir() else large.unlink()
    return output


def look_at_everything(output: Path) -> Iterator[str]:
    """Yield the errors, other than those for a person to fix, of everything that reads a kept file."""
    run, draft = Run(output / "Rex"), Draft(output / "visitors" / "a" / "draft")
    compared = output / "visitors" / "a" / "compare" / "0001"
    looks: list[Callable[[], object]] = [
        lambda: list(library.list_adapters([output])),
        lambda: library.find_adapter("Rex", [output]),
        lambda: [library.display_name(path) for path in output.glob("*/checkpoints/*/adapter.safetensors")],
        lambda: lookup.find(output, "Rex"),
        lambda: run.config,
        lambda: run.state,
        lambda: run.photo_records,
        lambda: run.started_with,
        lambda: run.require_resumable(run.config, True),
        lambda: progress.read(run),
        lambda: progress.process_log(run),
        lambda: lookup.photos_of(run.folder / "Rex.safetensors", 64),
        lambda: draft.read(),
        lambda: draft.photos(64),
        lambda: votes.upcoming(compared),
        lambda: votes.tally(votes.recorded(compared), "subject"),
        lambda: calibration.load(output, run.config),
        lambda: [trash.restore(key, output) for key in trash.keys(output)],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for look in looks:
            try:
                with contextlib.suppress(UserError):
                    look()
            except Exception as error:
                yield f"{type(error).__name__}: {str(error)[:100]}"


SIZES = [1_000, 10_000, 20_000, 40_000, 60_000, 100_000, 200_000, 400_000, 800_000]


def all_faults(bench: Bench, tries: int) -> dict[str, Callable[[], Row]]:
    """Return the functions of all rows by name."""
    faults: dict[str, Callable[[], Row]] = {}
    faults |= {f"kill {work}": functools.partial(kill, bench, work, tries) for work in WORKS}
    for work in ("train", "export", "import"):
        faults |= {
            f"full {work}": functools.partial(full_disk, bench, work, SIZES),
            f"read-only {work}": functools.partial(read_only, bench, work),
            f"two {work}": functools.partial(two_at_once, bench, work, 5),
        }
    return {name: faults[name] for name in sorted(faults)} | {"garbage": lambda: garbage(bench, list(GARBAGE))}
