"""Run inputs in a child process with bounds of time and memory, and count how they end."""

import contextlib
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from random import Random

HANG_SECONDS = 20
"""Seconds after which a child is ended and its input counts as a hang."""
SECONDS, MEBIBYTES = 2.0, 256
"""Processor seconds that one input may take, and memory that it may add to the process. Every input is smaller than
1 MiB, and so is the base model."""

Span = tuple[int, int]
"""Numbers of the first input and of the one after the last. A number stands for the same input in each run."""


class Results:
    """Counts of inputs by kind and outcome ("accepted", "refused", "fault"), and an input for each kind of fault."""

    def __init__(self):
        self.counts: defaultdict[str, Counter] = defaultdict(Counter)
        self.faults: dict[str, str] = {}

    def add(self, kind: str, number: int, outcome: str, what: str) -> None:
        self.counts[kind][outcome] += 1
        if outcome == "fault":
            self.faults.setdefault(what, f"{kind} {number}")

    def table(self) -> str:
        """The counts as Markdown, and the faults."""
        lines = [f"Bounds for one input: {SECONDS:.0f} s of one core, {MEBIBYTES} MiB.", "",
                 "| input | tried | accepted | refused | faults |", "|---|---:|---:|---:|---:|"]  # fmt: skip
        for kind, counts in self.counts.items():
            row = (counts.total(), counts["accepted"], counts["refused"], counts["fault"])
            lines.append(f"| {kind} | {' | '.join(f'{number:,}' for number in row)} |")
        return "\n".join([*lines, *(f"\n{number}: {what}" for what, number in self.faults.items())])


def run(spans: Mapping[str, Span], seconds: float) -> Results:
    """Run inputs of several kinds, each kind at most ``seconds`` long."""
    results, left = Results(), dict(spans)
    while left:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            log.touch()
            command = [sys.executable, str(Path(__file__).parent), "--child", json.dumps(left), str(log), str(seconds)]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = [json.loads(line) for line in log.read_text().splitlines()]
        for entry in lines:
            if len(entry) == 4:
                results.add(*entry)
        if done.returncode == 0:
            return results
        if not lines or len(lines[-1]) == 4:
            raise RuntimeError(done.stderr[-3000:])
        kind, number = lines[-1]
        what = "hang" if "Timeout" in done.stderr else f"exit {done.returncode}"
        results.add(kind, number, "fault", f"{what} {done.stderr[-300:]}")
        kinds = list(left)
        left = {name: left[name] for name in kinds[kinds.index(kind) :]} | {kind: (number + 1, left[kind][1])}
    return results


def child(spans: Mapping[str, Span], log: Path, seconds: float) -> None:
    """Run inputs in this process, and log the number of each before and its outcome after it."""
    from kinds import kinds

    with tempfile.TemporaryDirectory() as name, log.open("a", buffering=1) as lines:
        found = {kind.name: kind for kind in kinds(Path(name))}
        _limit_memory()
        for kind, (first, last) in spans.items():
            deadline = time.monotonic() + seconds
            for number in range(first, last):
                if time.monotonic() > deadline:
                    break
                lines.write(json.dumps([kind, number]) + "\n")
                lines.write(json.dumps([kind, number, *one(found[kind], number)]) + "\n")


def one(kind, number: int) -> tuple[str, str]:
    """Run one input. Returns its outcome and, for a fault, what it is."""
    from hra_diffusion.errors import UserError
    from training.memory.peak import peak_memory, reset_peak_memory

    with tempfile.TemporaryDirectory() as name:
        given = kind.write(Random(f"{kind.name} {number}"), Path(name))
        before, start, outcome, what = reset_peak_memory(), time.process_time(), "accepted", ""
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            kind.read(given)
        except UserError as error:
            outcome = "refused"
            if len(str(error)) > 5000 or "allocate memory" in str(error):
                what = f"{type(error).__name__}: {str(error)[:100]}"
        except Exception as error:
            what = f"{type(error).__name__} {_place(error)}: {str(error)[:100]}"
        finally:
            faulthandler.cancel_dump_traceback_later()
        took, grown = time.process_time() - start, (peak_memory() - before) / 2**20
    if not what and (took > SECONDS or grown > MEBIBYTES):
        what = "more than 2 s" if took > SECONDS else f"more than {MEBIBYTES} MiB"
    return ("fault", what) if what else (outcome, "")


def _limit_memory() -> None:
    """Bound the address space of this process, so that an input that asks for many gigabytes fails at once."""
    with contextlib.suppress(ImportError, FileNotFoundError):  # on Windows; on macOS
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**30, resource.RLIM_INFINITY))


def _place(error: BaseException) -> str:
    """File and line of the project at which an error was raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    return f"at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
