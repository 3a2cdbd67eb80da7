"""Adapters that teach Stable Diffusion a subject: LoRA, MoSLoRA, HRA, HOFT and SHOFT.

import hra_diffusion as hra
pipe = hra.load_base("toybox")                       # or your own StableDiffusionPipeline
hra.load(pipe, "outputs/Rex/Rex.safetensors")
image, = hra.generate(pipe, "a sks dog in the snow", {"Rex": 1.0}, seed=7)

The public names are listed in ``__init__.pyi``. They are imported on first use, because diffusers takes seconds.
"""

import importlib.metadata

import lazy_loader

__version__ = importlib.metadata.version("hra-diffusion")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
