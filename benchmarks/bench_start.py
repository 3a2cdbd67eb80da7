"""Start: what a person waits for before anything happens, each in a process of its own.

python -m benchmarks.bench_start [--rounds 3] [--python OTHER/bin/python]

--python: the interpreter of an environment with the program alone, as make app sets it up; the tests' has PEFT too, and
diffusers imports it wherever it is.
"""

import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from operator import sub

from gradio_client import Client

from app.benchmarking.timing import median_with_range, time_interleaved
from benchmarks.common import Report, Target, arguments, publish

HELP_S, PAGE_S, PICTURE_S = 0.6, 8.0, 5.0
PICTURE = [[], "a toy", 1, 0, True, "", 25, None, "dpm++", None, None, 1, 1, 1, 1]
"""What Create asks for when it opens, but for one picture only."""
COMMANDS = {
    "python alone": ["-c", ""],
    "import torch": ["-c", "import torch"],
    "import hra_diffusion": ["-c", "import hra_diffusion"],
    "hra-diffusion --help": ["-m", "app.cli", "--help"],
    "hra-diffusion train --help": ["-m", "app.cli", "train", "--help"],
    "hra-diffusion methods": ["-m", "app.cli", "methods"],
}


def main() -> None:
    given = arguments(__doc__, {"rounds": 3}, {"rounds": 3}, python=sys.executable)
    python = given.python
    ways = {name: partial(call, [python, *command]) for name, command in COMMANDS.items()}
    ways |= {"the page answers": partial(open_page, python), "the page answers and draws": partial(draw, python)}
    spent = time_interleaved(ways, given.rounds, minutes=given.minutes)
    listed = subprocess.run([python, "-X", "importtime", "-m", "app.cli", "--help"], capture_output=True, text=True)
    torch = [line for line in listed.stderr.splitlines() if line.split("|")[-1].strip() == "torch"]
    later = list(map(sub, spent["the page answers and draws"], spent["the page answers"]))
    bars = [
        Target.of("--help, s", spent["hra-diffusion --help"], HELP_S),
        Target("--help, imports of torch", len(torch), 0),
        Target.of("page, s", spent["the page answers"], PAGE_S),
        Target.of("first picture later, s", later, PICTURE_S),
    ]
    rows = [(name, median_with_range(own)) for name, own in spent.items()]
    found = subprocess.run([python, "-c", "import peft"], capture_output=True).returncode == 0
    where = "PEFT installed beside it" if found else "an environment with the program alone"
    said = f"fresh processes, files in the system's cache; {where}; {len(spent['python alone'])} interleaved rounds"
    publish(Report(said, ("what", "s"), rows, bars, raw=spent), given)


def call(command: list[str]) -> None:
    """Run it and wait."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def open_page(python: str) -> None:
    """Start the page and ask for it until it is there."""
    with page(python):
        pass


def draw(python: str) -> None:
    """Start the page and, once it is there, ask for one picture of the base."""
    with page(python) as address:
        Client(address, verbose=False).predict(*PICTURE, api_name="/generate")


@contextmanager
def page(python: str) -> Iterator[str]:
    """The page in a process of its own, from when it answers until the block ends; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-m", "app.cli", "app", "--port", str(port), "--output", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not answers(address := f"http://127.0.0.1:{port}/"):
                if server.poll() is not None:
                    raise RuntimeError(f"the page ended with exit code {server.returncode}")
                time.sleep(0.05)
            yield address
        finally:
            server.kill()
            server.wait()


def answers(address: str) -> bool:
    """Whether the page can be had."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


if __name__ == "__main__":
    main()
