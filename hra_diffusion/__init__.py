"""Teach Stable Diffusion a subject with LoRA, MoSLoRA, HRA, HOFT or SHOFT: the adapters and what is done with them.

import hra_diffusion as hra
pipe = hra.load_base("toybox")                       # or any StableDiffusionPipeline you hold
hra.load(pipe, "outputs/Rex/Rex.safetensors")
image, = hra.generate(pipe, "a sks dog in the snow", {"Rex": 1.0}, seed=7)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hra_diffusion.adapters.attachment import attach, detach
    from hra_diffusion.adapters.registry import get as get_method
    from hra_diffusion.adapters.registry import names as method_names
    from hra_diffusion.comparison.compare import Column, Comparison, compare
    from hra_diffusion.comparison.compare import save as save_comparison
    from hra_diffusion.generation.sampling import Request, Settings, draw, generate, save_png
    from hra_diffusion.interop import export, import_adapter
    from hra_diffusion.pipeline import activate, active, load, load_base, loaded, merge, save, unload, unmerge

__all__ = [
    "Column",
    "Comparison",
    "Request",
    "Settings",
    "activate",
    "active",
    "attach",
    "compare",
    "detach",
    "draw",
    "export",
    "generate",
    "get_method",
    "import_adapter",
    "load",
    "load_base",
    "loaded",
    "merge",
    "method_names",
    "save",
    "save_comparison",
    "save_png",
    "unload",
    "unmerge",
]

_HOMES = {
    "attach": ("adapters.attachment", "attach"),
    "detach": ("adapters.attachment", "detach"),
    "Column": ("comparison.compare", "Column"),
    "Comparison": ("comparison.compare", "Comparison"),
    "compare": ("comparison.compare", "compare"),
    "save_comparison": ("comparison.compare", "save"),
    "Request": ("generation.sampling", "Request"),
    "Settings": ("generation.sampling", "Settings"),
    "draw": ("generation.sampling", "draw"),
    "generate": ("generation.sampling", "generate"),
    "save_png": ("generation.sampling", "save_png"),
    "export": ("interop", "export"),
    "import_adapter": ("interop", "import_adapter"),
    "activate": ("pipeline", "activate"),
    "active": ("pipeline", "active"),
    "load": ("pipeline", "load"),
    "load_base": ("pipeline", "load_base"),
    "loaded": ("pipeline", "loaded"),
    "merge": ("pipeline", "merge"),
    "save": ("pipeline", "save"),
    "unload": ("pipeline", "unload"),
    "unmerge": ("pipeline", "unmerge"),
    "get_method": ("adapters.registry", "get"),
    "method_names": ("adapters.registry", "names"),
}


def __getattr__(name: str) -> Any:
    """Names are imported when they are first asked for: diffusers alone takes seconds, and not every use draws."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, original = _HOMES[name]
    return getattr(importlib.import_module(f"{__name__}.{home}"), original)
