"""Devices, and the dtypes that they support."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from typing import Any

import torch

from hra_diffusion.errors import BaseModelError


def available() -> list[str]:
    """Return the available device types, fastest first."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, is_available in found.items() if is_available]


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


@contextlib.contextmanager
def vae_upcast(vae: Any) -> Iterator[Any]:
    """Within the block, convert a float16 VAE to float32 if its config sets ``force_upcast``.

    SDXL's does, since its activations overflow in float16.
    """
    upcast = vae.dtype == torch.float16 and vae.config.force_upcast
    if upcast:
        vae.float()
    try:
        yield vae
    finally:
        if upcast:
            vae.half()
