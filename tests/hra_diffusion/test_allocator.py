"""Freed memory is retained within the block."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from hra_diffusion.allocator import freed_memory_retained

ELEMENTS = 2**24
PAGES = 4 * ELEMENTS // resource.getpagesize()


def page_faults(times: int) -> int:
    """Count page faults while a large block is allocated and freed repeatedly."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(ELEMENTS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_pages() -> int:
    """Return the number of pages in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU C library's allocator")
def test_freed_memory_is_reused_and_returned_at_the_end():
    with freed_memory_retained():
        faults, retained = page_faults(20), resident_pages()
    # a small block in the place of a large one can move the next large one, but not at every step
    assert faults < 20 * PAGES / 2
    assert retained - resident_pages() > PAGES / 2
