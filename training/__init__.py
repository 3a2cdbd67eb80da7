"""Photos in, adapter out: DreamBooth training of the adapters of ``hra_diffusion``."""
