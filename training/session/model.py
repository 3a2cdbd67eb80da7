"""The model that a run trains: denoiser and text encoders with a new adapter."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_file, attachment
from hra_diffusion.errors import first_line
from hra_diffusion.models import families
from hra_diffusion.models.families import Text
from training.config import TrainConfig
from training.errors import TrainingError
from training.rank_matching import LayerRanks, layers_to_adapt
from training.session.trigger_embeddings import add_trigger_embeddings


class Denoiser(nn.Module):
    """Denoiser and trained text encoders as one module, which Accelerate wraps once for several processes."""

    def __init__(self, pipe: StableDiffusionPipeline, with_text: bool):
        super().__init__()
        self.family, self.pixels = families.of(pipe), families.latent_pixels(pipe)
        self.model = families.denoiser(pipe)
        self.encoders = nn.ModuleList(families.text_encoders(pipe) if with_text else [])

    def forward(self, latents: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """Return the prediction (B, C, h, w) for noisy latents, timesteps (B,) and token ids or embeddings."""
        if self.encoders:
            text = text | self.family.embed(list(self.encoders), text["ids"])
        dtype = next(self.model.parameters()).dtype
        # time ids stay in float32: bfloat16 would round an image size
        text = {key: value if key == "time_ids" else value.to(dtype) for key, value in text.items()}
        return self.family.predict(self.model, latents.to(dtype), timesteps, text, latents.shape[-1] * self.pixels)


def add_adapter(config: TrainConfig, pipe: StableDiffusionPipeline, start: bool = True) -> dict[str, nn.Parameter]:
    """Attach a new adapter and return its parameters by file key. Raises TrainingError as ``check_adapter`` does.

    ``start``: as in ``attachment.attach``; unneeded if the parameters are loaded.
    """
    check_adapter(config, pipe)
    for number, (model, layers) in enumerate(layers_to_adapt(config, pipe)):
        attachment.attach(
            model, config.method, config.options, name=config.name, targets=list(layers), seed=config.seed + number,
            ranks=_given_ranks(layers), start=start,
        )  # fmt: skip
    if config.train_trigger:
        add_trigger_embeddings(config, pipe)
    for model in pipeline.components(pipe).values():
        if config.name in attachment.adapter_names(model):
            attachment.remember(model, config.name, {**subject_fields(config), "targets": config.targets})
    for encoder in families.text_encoders(pipe):
        attachment.freeze(encoder)
    return adapter_file.parameters(pipeline.components(pipe), config.name)


def subject_fields(config: TrainConfig) -> dict[str, Any]:
    """Return the fields of ``adapter_file.AdapterInfo`` that name the subjects."""
    several = [{"trigger": subject.trigger, "class_noun": subject.class_noun} for subject in config.concepts]
    return {"trigger": config.trigger, "class_noun": config.class_noun, "subjects": several}


def check_adapter(config: TrainConfig, pipe: StableDiffusionPipeline) -> None:
    """Raise TrainingError if the adapter can't be attached: an unknown target, too large a rank, a name in use."""
    if config.runs_text_encoder and not families.of(pipe).trains_text:
        option = "train_text_encoder" if config.train_text_encoder else "train_trigger"
        raise TrainingError(f"{option}: the text encoders of {config.base} are not trained; leave it out")
    try:
        for model, layers in layers_to_adapt(config, pipe):
            attachment.plan_attachment(
                model, config.method, config.options, name=config.name, targets=list(layers), ranks=_given_ranks(layers)
            )
    except ValueError as error:
        raise TrainingError(f"{config.method} can't be attached to {config.base}: {error}") from error


def compile_blocks(pipe: StableDiffusionPipeline, device: torch.device) -> None:
    """Compile the denoiser's transformer blocks in place. Raises TrainingError if no compiler works on the device.

    Blocks of the same shapes share their compiled code. Source: diffusers' ``compile_repeated_blocks``.
    """
    try:
        torch.compile(torch.square)(torch.ones(2, device=device))
    except Exception as error:  # the libraries involved raise errors of many types
        raise TrainingError(
            f"--compile does not work here: {first_line(error)}; install a C++ compiler such as g++ (on a GPU Triton), "
            "or use --no-compile"
        ) from error
    families.denoiser(pipe).compile_repeated_blocks()


def discard_compiled_blocks(pipe: StableDiffusionPipeline) -> None:
    """Undo ``compile_blocks``."""
    for module in families.denoiser(pipe).modules():
        module._compiled_call_impl = None


def _given_ranks(layers: LayerRanks) -> dict[str, int]:
    return {path: rank for path, rank in layers.items() if rank is not None}


def enable_gradient_checkpointing(pipe: StableDiffusionPipeline, config: TrainConfig) -> None:
    """Recompute activations of denoiser and text encoders in the backward pass: less memory, more time."""
    # the state of the random number generator can't be read while a CUDA graph is captured; only dropout needs it
    options = {"use_reentrant": False, "preserve_rng_state": has_dropout(pipe, config)}
    families.denoiser(pipe).enable_gradient_checkpointing(functools.partial(checkpoint, **options))
    for encoder in families.text_encoders(pipe):
        _activation_checkpointing(encoder, "enable")(options)


def disable_gradient_checkpointing(pipe: StableDiffusionPipeline) -> None:
    """Undo ``enable_gradient_checkpointing``."""
    families.denoiser(pipe).disable_gradient_checkpointing()
    for encoder in families.text_encoders(pipe):
        _activation_checkpointing(encoder, "disable")()


def has_dropout(pipe: StableDiffusionPipeline, config: TrainConfig) -> bool:
    """Return whether the adapter or the base model drops activations at random during training."""
    rates = [getattr(encoder.config, "attention_dropout", 0) for encoder in families.text_encoders(pipe)]
    rates += [module.p for module in families.denoiser(pipe).modules() if isinstance(module, nn.Dropout)]
    return any([config.options.get("dropout"), *rates])


def _activation_checkpointing(encoder: Any, verb: str) -> Callable[..., None]:
    """Return transformers' method to "enable" or "disable" it; versions before 5.23 have only the deprecated name."""
    method = getattr(encoder, f"activation_checkpointing_{verb}", None)
    return method or getattr(encoder, f"gradient_checkpointing_{verb}")
