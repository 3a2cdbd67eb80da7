"""Adapters from and for other tools: diffusers, kohya's files, PEFT's folders, merged checkpoints."""

from hra_diffusion.interop.exports import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
