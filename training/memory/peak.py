"""Peak memory of this process, and running a function in a process with a peak of its own."""

import multiprocessing
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from hra_diffusion import files
from hra_diffusion.libraries import BITSANDBYTES, hide

T = TypeVar("T")


def peak_memory(device: str = "cpu") -> int:
    """Return the peak memory since ``reset_peak_memory`` in bytes: allocated on a CUDA device, otherwise resident."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if files.WINDOWS:
        import psutil  # accelerate needs it, too

        return cast(Any, psutil.Process().memory_info()).peak_wset
    if (status := Path("/proc/self/status")).exists():  # getrusage includes the peak of the parent process
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory(device: str = "cpu") -> int:
    """Start a new measurement of the peak and return the bytes in use.

    Resident memory can only be reset on Linux; elsewhere its peak is that of the whole process.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (reset := Path("/proc/self/clear_refs")).exists():
        reset.write_text("5")
    return peak_memory(device)


def in_subprocess(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a new process and return its result. Function, arguments and result must be picklable."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=hide, initargs=(BITSANDBYTES,)) as pool:
        return pool.submit(function, *arguments).result()
