"""Photos in, adapter out: DreamBooth training of the adapters of ``hra_diffusion``."""

from hra_diffusion.threads import limit_spinning

limit_spinning()  # before any module imports torch
