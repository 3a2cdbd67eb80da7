"""Freed memory: kept for the next step while a run lasts."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from hra_diffusion.allocator import freed_memory_retained

NUMBERS = 2**24
PAGES = 4 * NUMBERS // resource.getpagesize()


def fresh_pages(times: int) -> int:
    """How many pages the kernel gives while a large block is taken and freed so many times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(NUMBERS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    """Pages in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU C library's allocator")
def test_a_run_takes_its_memory_from_the_kernel_once():
    with freed_memory_retained():
        fresh, held = fresh_pages(20), resident()
    # a small block taken from a large one's place moves the next large one: now and then, not at every step
    assert fresh < 20 * PAGES / 2
    assert held - resident() > PAGES / 2, "and hands it back at the end"
