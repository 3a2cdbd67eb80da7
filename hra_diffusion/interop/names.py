"""How files elsewhere name an adapter's layers: diffusers', kohya's; and which of our layers such a name means."""

from typing import Any

from diffusers import DiffusionPipeline

from hra_diffusion import families, pipeline
from hra_diffusion.errors import UserError
from hra_diffusion.interop import original


def public(component: str, path: str) -> str:
    """A layer's path as files have it: text encoders' with "text_model.", which transformers 5 dropped from one class."""
    if not component.startswith("text_encoder") or path.startswith(("text_model.", "text_projection")):
        return path
    return f"text_model.{path}"


def kohya(pipe: DiffusionPipeline, component: str, path: str) -> str:
    """A layer as kohya's files name it: "lora_unet_down_blocks_0_…", of SDXL "lora_unet_input_blocks_4_1_…"."""
    family, path = families.of(pipe), public(component, path)
    if component == "unet" and family.original_unet_names:
        path = original.unet_name(path, pipe.unet.config)
    return f"{family.kohya[component]}_{path}".replace(".", "_")
