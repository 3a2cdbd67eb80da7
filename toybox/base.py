"""The base model: a UNet, its noise scheduler and the CLIP model's text encoder.

The model has the components and module names of Stable Diffusion 1.5, smaller: 16×16 latents and three levels. It uses
v-prediction (Salimans & Ho 2022) and a cosine noise schedule.
"""

from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from toybox.clip import TEXT_WIDTH, text_config


def new_unet(latent_channels: int, channels: tuple[int, int, int]) -> UNet2DConditionModel:
    """Create an untrained UNet for 16×16 latents; 17 M parameters by default.

    Attention is at 8×8 and 4×4, and at 16×16 in the decoder: without it, adapters of attention learn colours but no
    shapes.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        # diffusers reads this as the number of heads
        attention_head_dim=4,
        # the pooled caption is added to the time embedding, so that blocks without attention are conditioned too
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def new_scheduler() -> DDIMScheduler:
    """Create the noise scheduler; it has zero terminal SNR, so that flat backgrounds keep their brightness."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


class Base(nn.Module):
    """The UNet and the text encoder, which is the CLIP model's."""

    def __init__(self, tokenizer: CLIPTokenizer, latent_channels: int, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.unet = new_unet(latent_channels, channels)
        self.text_encoder = CLIPTextModel(text_config(tokenizer))

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Predict v for noisy latents (N, C, h, w), timesteps (N,) and token ids (N, MAX_LENGTH)."""
        text = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, timesteps, encoder_hidden_states=text).sample
