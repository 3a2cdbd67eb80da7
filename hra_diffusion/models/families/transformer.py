"""What Stable Diffusion 3 and FLUX.2 have in common: a transformer, flow matching, and text encoders of any kind."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from hra_diffusion.models import flow


class TransformerFamily:
    """The parts of a family whose denoiser is a transformer trained by flow matching."""

    denoiser = "transformer"
    defaults: tuple[int, float]
    """Of denoising steps and guidance scale, as on the model's card."""
    flow_matching = True
    trains_text = False
    kohya_prefixes: tuple[tuple[str, str], ...] = (("transformer", "lora_unet"),)
    embeddings_type: str | None = None
    addition_embed_types: tuple[str | None, ...] = (None,)
    from_pretrained_kwargs: Mapping[str, Any] = MappingProxyType({})
    original_unet_names = False
    require_scheduler = staticmethod(flow.require)
    override_noise = staticmethod(flow.override)

    def unused_layers(self, component: str, encoder: Any) -> tuple[str, ...]:
        """The text encoders are not trained."""
        return ()

    def distillation_sign(self, pipe: Any) -> str:
        """Return why a base model looks distilled for few steps, or ""."""
        raise NotImplementedError

    def sampling_defaults(self, pipe: Any) -> tuple[int, float]:
        """Return the defaults of the family; distilled models take 4 steps without guidance (their cards)."""
        return (4, 1.0) if self.distillation_sign(pipe) else self.defaults

    def takes_guidance(self, pipe: Any) -> bool:
        """The pipeline applies guidance."""
        return True

    def latent_multiple(self, denoiser: Any) -> int:
        """Return the side of the transformer's patches."""
        return denoiser.config.patch_size

    def finish(self, pipe: Any, pixels: Tensor) -> Tensor:
        """Scale pixels to 0 to 1."""
        return pipe.image_processor.postprocess(pixels, "pt")
