"""Devices that models run on, and the dtypes they compute in."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from typing import Any

import torch

from hra_diffusion.errors import BaseModelError


def devices() -> list[str]:
    """The kinds of device that models can be on here, the best first."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, found in there.items() if found]


def device_for(name: str | None) -> str:
    """The device of this name, the best there is for none. Raises BaseModelError if it is not here."""
    kind = (name or "cpu").split(":")[0]
    if kind in ("cuda", "mps") and kind not in devices():
        raise BaseModelError(f"no {kind.upper()} device is available here; use --device cpu")
    return name or devices()[0]


def computes_bfloat16(device: str) -> bool:
    """Whether a device ("cuda", "cpu", …) computes in bfloat16 itself.

    An x86 CPU without AVX512_BF16 emulates it. With AVX2, 2048² matrices multiply at 0.3 GFLOP/s, in float32 at 138;
    with AVX-512, 1024² at 17, in float32 at 91.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device != "cpu" or not x86 or torch.cpu._is_avx512_bf16_supported()


@contextlib.contextmanager
def vae_upcast(vae: Any) -> Iterator[Any]:
    """The autoencoder in a precision that holds its values: SDXL's overflows in float16 and says so."""
    narrow = vae.dtype == torch.float16 and vae.config.force_upcast
    if narrow:
        vae.float()
    try:
        yield vae
    finally:
        if narrow:
            vae.half()
