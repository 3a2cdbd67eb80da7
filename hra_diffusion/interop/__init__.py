"""Import and export of adapters: diffusers, kohya's files, PEFT's folders, merged checkpoints."""

from hra_diffusion.interop.exports import FORMATS, Exported, export
from hra_diffusion.interop.imports import Report, import_adapter, name_for, parse_adapter

__all__ = ["FORMATS", "Exported", "Report", "export", "import_adapter", "name_for", "parse_adapter"]
