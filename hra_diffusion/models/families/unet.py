"""What Stable Diffusion 1, 2 and XL have in common: a UNet, discrete diffusion, and CLIP text encoders."""

from typing import Any

from hra_diffusion.models import noise
from hra_diffusion.models.families import clip
from hra_diffusion.models.families.latents import scaled


class UNetFamily:
    """The parts of a family whose denoiser is a UNet."""

    denoiser = "unet"
    defaults: tuple[int, float]
    """Of denoising steps and guidance scale."""
    flow_matching = False
    optional_encoders: tuple[str, ...] = ()
    trains_text = True
    prompt_tokens: int | None = None
    noise_process = staticmethod(noise.of)
    require_scheduler = staticmethod(noise.require)
    override_noise = staticmethod(noise.override)
    distillation_sign = staticmethod(noise.distillation_sign)
    scale = staticmethod(scaled)
    tokenize = staticmethod(clip.tokenize)
    ids_shape = staticmethod(clip.ids_shape)

    def sampling_defaults(self, pipe: Any) -> tuple[int, float]:
        """Return the defaults of the family."""
        return self.defaults

    def takes_guidance(self, pipe: Any) -> bool:
        """The pipelines of UNets apply guidance."""
        return True

    def latent_channels(self, vae: Any) -> int:
        """Return the channels of the VAE's latents."""
        return vae.config.latent_channels

    def latent_multiple(self, denoiser: Any) -> int:
        """Return the number that the sides of the latents must be multiples of: the UNet halves them at every level."""
        return 2 ** (len(denoiser.config.down_block_types) - 1)
