"""What benchmarks time: a training step of a denoiser, with or without adapters, on random inputs."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hra_diffusion.allocator import retain_freed_memory
from hra_diffusion.models import families

TEXT_TOKENS = 512
"""Tokens of a prompt for a transformer, as FLUX.2 reads them."""


def weight_sharing_copy(model: nn.Module) -> Any:
    """Return a copy of the model that shares its weights and can have adapters of its own."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def fused_adamw(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Return AdamW in one kernel per step; on a GPU a CUDA graph can capture it."""
    return torch.optim.AdamW(parameters, lr=1e-5, fused=True, capturable=parameters[0].is_cuda)


def make_training_step(
    denoiser: Any,
    parameters: Iterable[nn.Parameter],
    batch_size: int,
    latent_size: int | None = None,
    penalty: Callable[[], Tensor | None] = lambda: None,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = fused_adamw,
) -> Callable[[], None]:
    """Return an optimiser step on fixed inputs: forward, loss, backward, clipping and AdamW, as in training.

    Args:
        denoiser: a UNet or a transformer, with an adapter attached.
        parameters: the adapter's parameters.
        batch_size: the number of latents.
        latent_size: height and width of the latents; the base model's by default.
        penalty: returns the method's regulariser (see ``attachment.penalty``).
        make_optimizer: returns an optimiser of the parameters.
    """
    retain_freed_memory()  # as in a run
    latents, predict = random_call(denoiser, batch_size, latent_size)
    noise, parameters = torch.randn_like(latents), list(parameters)
    optimizer = make_optimizer(parameters)

    def step() -> None:
        loss = F.mse_loss(predict().float(), noise.float())
        if (regulariser := penalty()) is not None:
            loss = loss + regulariser.to(loss.device)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_frozen_step(denoiser: Any, batch_size: int, latent_size: int | None = None) -> Callable[[], None]:
    """Return the forward and backward pass of the frozen denoiser without adapters: a lower bound for a training step.

    The gradient flows through the activations as far back as the first attention layer, as with adapters on attention.
    The denoiser is modified; pass a ``weight_sharing_copy``.
    """
    from training.memory.meter import ATTENTION  # takes seconds to import, which --help doesn't need

    retain_freed_memory()
    _, predict = random_call(denoiser, batch_size, latent_size)
    zero = torch.zeros((), device=denoiser.device, requires_grad=True)
    first: Any = next(module for module in denoiser.requires_grad_(False).modules() if isinstance(module, ATTENTION))

    def require_gradient(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0] + zero, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] + zero}

    first.register_forward_pre_hook(require_gradient, with_kwargs=True)
    return lambda: predict().float().square().mean().backward()


def random_call(denoiser: Any, batch_size: int, latent_size: int | None = None) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return random latents, and a function that returns a denoiser's prediction for them, of the same shape."""
    config, options = denoiser.config, {"device": denoiser.device, "dtype": denoiser.dtype}
    if "cross_attention_dim" in config:  # a UNet
        inputs, conditions = random_unet_inputs(denoiser, batch_size, latent_size)
        return inputs[0], lambda: denoiser(*inputs, **conditions).sample
    version = families.version({**config, "_class_name": type(denoiser).__name__})
    family = next(family for family in families.FAMILIES if family.name == version)
    latents = torch.randn(batch_size, config.in_channels, *[latent_size or config.sample_size] * 2, **options)
    text = {"hidden": torch.randn(batch_size, TEXT_TOKENS, config.joint_attention_dim, **options)}
    if pooled := config.get("pooled_projection_dim"):
        text["pooled"] = torch.randn(batch_size, pooled, **options)
    times = 1000 * torch.rand(batch_size, device=denoiser.device)
    return latents, lambda: family.predict(denoiser, latents, times, text, 0)


def random_unet_inputs(
    unet: Any, batch_size: int, latent_size: int | None = None
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Return random latents, timesteps and text embeddings for a UNet, and its further keyword arguments.

    Only Stable Diffusion XL has such keyword arguments: pooled text embeddings and time ids.
    """
    config, options = unet.config, {"device": unet.device, "dtype": unet.dtype}
    size = [latent_size or config.sample_size] * 2
    latents = torch.randn(batch_size, config.in_channels, *size, **options)
    text = torch.randn(batch_size, 77, config.cross_attention_dim, **options)
    timesteps = torch.randint(1000, (batch_size,), device=unet.device)
    if config.addition_embed_type != "text_time":
        return (latents, timesteps, text), {}
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    conditions = {
        "text_embeds": torch.randn(batch_size, pooled, **options),
        "time_ids": torch.ones(batch_size, 6, **options),
    }
    return (latents, timesteps, text), {"added_cond_kwargs": conditions}
