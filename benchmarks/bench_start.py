"""Startup times: commands, the page, and the first image on the page, each in a process of its own.

python -m benchmarks.bench_start [--rounds 3] [--python OTHER/bin/python]

--python: the interpreter of an environment with this program alone, as ``make app`` creates it. The environment of the
tests also has PEFT, which diffusers imports if it is installed.
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
from benchmarks.options import parse_options
from benchmarks.report import Report, Target, publish

HELP_LIMIT, PAGE_LIMIT, IMAGE_LIMIT = 0.6, 8.0, 5.0
"""Limits in seconds."""
INPUTS = [[], "a toy", 1, 0, True, "", 25, None, "dpm++", None, None, "compose", 1, 1, 1, 1]
"""The Generate tab's inputs when the page opens, with one image instead of several."""
COMMANDS = {
    "python": ["-c", ""],
    "import torch": ["-c", "import torch"],
    "import hra_diffusion": ["-c", "import hra_diffusion"],
    "hra-diffusion --help": ["-m", "app.cli", "--help"],
    "hra-diffusion train --help": ["-m", "app.cli", "train", "--help"],
    "hra-diffusion methods": ["-m", "app.cli", "methods"],
}


def main() -> None:
    args = parse_options(__doc__, {"rounds": 3}, {"rounds": 3}, python=sys.executable)
    python = args.python
    variants = {name: partial(run, [python, *command]) for name, command in COMMANDS.items()}
    variants |= {"page": partial(open_page, python), "page and first image": partial(generate_image, python)}
    seconds = time_interleaved(variants, args.rounds, minutes=args.minutes)
    log = subprocess.run([python, "-X", "importtime", "-m", "app.cli", "--help"], capture_output=True, text=True)
    torch_imports = [line for line in log.stderr.splitlines() if line.split("|")[-1].strip() == "torch"]
    first_image = list(map(sub, seconds["page and first image"], seconds["page"]))
    targets = [
        Target.of("--help, s", seconds["hra-diffusion --help"], HELP_LIMIT),
        Target("--help, imports of torch", len(torch_imports), 0),
        Target.of("page, s", seconds["page"], PAGE_LIMIT),
        Target.of("first image after the page, s", first_image, IMAGE_LIMIT),
    ]
    rows = [(name, median_with_range(rounds)) for name, rounds in seconds.items()]
    has_peft = subprocess.run([python, "-c", "import peft"], capture_output=True).returncode == 0
    environment = "an environment with PEFT" if has_peft else "an environment with this program alone"
    rounds = len(seconds["python"])
    conditions = f"new processes, files in the system's cache; {environment}; {rounds} interleaved rounds"
    publish(Report(conditions, ("start of", "seconds"), rows, targets, raw=seconds), args)


def run(command: list[str]) -> None:
    """Run a command to its end."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def open_page(python: str) -> None:
    """Start the page and wait until it responds."""
    with page(python):
        pass


def generate_image(python: str) -> None:
    """Start the page and, once it responds, generate an image of the base model."""
    with page(python) as address:
        Client(address, verbose=False).predict(*INPUTS, api_name="/generate")


@contextmanager
def page(python: str) -> Iterator[str]:
    """Run the page in a process; enter the block with its address when it responds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-m", "app.cli", "app", "--port", str(port), "--output", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not responds(address := f"http://127.0.0.1:{port}/"):
                if server.poll() is not None:
                    raise RuntimeError(f"the page exited with code {server.returncode}")
                time.sleep(0.05)
            yield address
        finally:
            server.kill()
            server.wait()


def responds(address: str) -> bool:
    """Return whether the address responds with status 200."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


if __name__ == "__main__":
    main()
