"""Devices, and the dtypes that they support."""

from __future__ import annotations

import contextlib
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

    A CPU with no instructions beyond AVX2 emulates them: 2048² matrices multiply at 0.3 GFLOP/s, against 138 in
    float32.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2"


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
