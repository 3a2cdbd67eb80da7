"""What a benchmark ran on, and its results as a table."""

import contextlib
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch

LIBRARIES = ("torch", "diffusers", "transformers", "peft")


def machine_facts() -> dict[str, str]:
    """Return processor, memory, load average, GPU and the versions of Python and the libraries."""
    instructions = torch.backends.cpu.get_cpu_capability()
    facts = {"processor": f"{_processor()} ({instructions}), {os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    if hasattr(os, "sysconf"):
        facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
        facts["load average"] = f"{os.getloadavg()[0]:.1f}"
    facts["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts["python"] = platform.python_version()
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            facts[name] = metadata.version(name)
    return facts


def describe_machine(facts: Mapping[str, object]) -> str:
    """Format a machine's facts as one line: "processor …, memory …, …"."""
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a table as Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _processor() -> str:
    cpu_info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", cpu_info.read_text()) if cpu_info.exists() else None
    return name[1] if name else platform.processor() or platform.machine()
