"""Devices, and the dtypes that they support."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from hra_diffusion.errors import BaseModelError


def available() -> list[str]:
    """Return the available device types, fastest first."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, is_available in found.items() if is_available]


def training_devices() -> list[str]:
    """Return the devices that can each train one run at a time: every visible GPU, or else the fastest device."""
    fastest = available()[0]
    return [f"cuda:{number}" for number in _visible_gpus()] if fastest == "cuda" else [fastest]


def numbered(device: str) -> str:
    """Return a device with its number among all GPUs of the machine: "cuda" is "cuda:0" or, if only one GPU is visible,
    that one."""
    return f"cuda:{_visible_gpus()[0]}" if device == "cuda" else device


def local(device: str) -> str:
    """Return a device of ``training_devices`` as torch numbers it: "cuda:0" is the first visible GPU."""
    kind, _, number = device.partition(":")
    return f"cuda:{_visible_gpus().index(number)}" if kind == "cuda" and number in _visible_gpus() else kind


def _visible_gpus() -> list[str]:
    """Return the numbers (or identifiers) of the visible GPUs on this machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(max(1, torch.cuda.device_count()))]


def memory(device: str) -> int:
    """Return the memory of a device in bytes. For the CPU, that of the machine, or of the container if it has less."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(local(device)).total_memory
    if device == "mps":
        return torch.mps.recommended_max_memory()
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's (docs.kernel.org/admin-guide/cgroup-v2.html)
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(psutil.virtual_memory().total, int(text) if text.isdecimal() else sys.maxsize)


def device_for(name: str | None) -> str:
    """Return ``name``, or the fastest available device for None. Raises BaseModelError if it is not available."""
    kind = (name or "cpu").split(":")[0]
    if kind in ("cuda", "mps") and kind not in available():
        raise BaseModelError(f"no {kind.upper()} device is available here; use --device cpu")
    return name or available()[0]


def computes_bfloat16(device: str) -> bool:
    """Whether a device type ("cuda", "cpu", …) has bfloat16 instructions.

    An x86 CPU without AVX512_BF16 emulates it. With AVX2, 2048² matrices multiply at 0.3 GFLOP/s, in float32 at 138;
    with AVX-512, 1024² at 17, in float32 at 91.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device != "cpu" or not x86 or torch.cpu._is_avx512_bf16_supported()


def preferred_dtype(device: str) -> str:
    """Return the precision that generates images fastest on a device: half precision on CUDA, else "float32"."""
    if not device.startswith("cuda"):
        return "float32"
    return "bfloat16" if computes_bfloat16("cuda") else "float16"


@contextlib.contextmanager
def vae_upcast(vae: Any) -> Iterator[Any]:
    """Within the block, convert a float16 VAE to float32 if its config sets ``force_upcast``.

    SDXL's does, since its activations overflow in float16.
    """
    upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
    if upcast:
        vae.float()
    try:
        yield vae
    finally:
        if upcast:
            vae.half()
