"""Names of layers in adapter files: how diffusers, kohya and other programs write the path of a layer."""

from diffusers import DiffusionPipeline

from hra_diffusion.errors import UserError
from hra_diffusion.interop import checkpoint_keys
from hra_diffusion.models import families

LayerPath = tuple[str, str]
"""(component, path) of a layer of a pipeline."""

PEFT_PREFIX = "base_model.model."
"""Prefix of layer names in PEFT's files."""
_DENOISER_PREFIXES = (
    "lycoris_",
    "oft_unet_",  # networks/oft.py of sd-scripts 48d368fa
    "diffusion_model.", "model.diffusion_model.",  # ComfyUI's own names
)  # fmt: skip
_COMPONENT_PREFIXES = {
    **{f"{prefix}_": component for family in families.FAMILIES for component, prefix in family.kohya_prefixes},
    **{f"{component}.": component for component in families.COMPONENTS},
    # OneTrainer's files for ComfyUI: modules/model/StableDiffusion{,XL}Model.py at 23df3832
    "text_encoders.clip_l.transformer.": "text_encoder", "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    # the Open Model Initiative's names, which earlier versions of OneTrainer wrote
    "clip_l.": "text_encoder", "clip_h.": "text_encoder", "clip_g.": "text_encoder_2",
}  # fmt: skip
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def component_prefixes(pipe: DiffusionPipeline) -> dict[str, str]:
    """The components of a pipeline, and of other families, by the prefix of their keys."""
    family = families.of(pipe)
    own = {f"{prefix}_": component for component, prefix in family.kohya_prefixes}
    own[f"lora_{family.denoiser}_"] = family.denoiser  # OneTrainer's
    return _COMPONENT_PREFIXES | own | dict.fromkeys(_DENOISER_PREFIXES, family.denoiser)


def public_path(component: str, path: str) -> str:
    """A layer's path in files: text encoders' with the "text_model." that transformers 5 removed."""
    if not component.startswith("text_encoder") or path.startswith(("text_model.", "text_projection")):
        return path
    return f"text_model.{path}"


def kohya_key(pipe: DiffusionPipeline, component: str, path: str) -> str:
    """A layer's name in kohya's files: "lora_unet_down_blocks_0_…", for SDXL "lora_unet_input_blocks_4_1_…"."""
    family, path = families.of(pipe), public_path(component, path)
    if component == "unet" and family.original_unet_names:
        path = checkpoint_keys.unet_key(path, pipe.unet.config)
    return f"{dict(family.kohya_prefixes)[component]}_{path}".replace(".", "_")


def all_names(pipe: DiffusionPipeline, component: str, path: str) -> list[str]:
    """All names of a layer in files, without the prefix of its component."""
    if component != "unet":
        return [path, public_path(component, path), path.removeprefix("text_model.")]
    try:
        return [path, checkpoint_keys.unet_key(path, pipe.unet.config)]
    except UserError:  # the original layout has no such layer
        return [path]


def current_name(component: str, name: str) -> str:
    """The current name for a layer's name in files of old diffusers versions ("…attn1.to_out", "…self_attn.to_q")."""
    first, dot, last = name.rpartition(".")
    if not component.startswith("text_encoder"):
        return f"{name}.0" if last == "to_out" else name
    return first + dot + _OLD_TEXT.get(last, last)
