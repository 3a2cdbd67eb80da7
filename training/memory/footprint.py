"""Predict the memory of a run before it starts, from the base model's configuration, without its weights.

The models run on PyTorch's meta device, which computes shapes only, while the sizes of all tensors are counted: the
prediction follows the code without formulas of its own. Attention counts as fused kernels need it. Memory outside of
tensors (libraries, device context, workspaces of kernels, fragmentation) is estimated by the constants in ``OVERHEAD``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from hra_diffusion.adapters.quantization import quantise
from hra_diffusion.models import families
from hra_diffusion.models.loading import DTYPES
from hra_diffusion.models.meta import meta_pipeline
from training.config import TrainConfig
from training.memory.meter import tensors
from training.memory.passes import encoding_peak, generation_peak, training_peak
from training.session.model import add_adapter
from training.step_graph import uses_graph

GIB = 2**30
OVERHEAD = {"cpu": (0.5 * GIB, 1.5), "cuda": (0.6 * GIB, 1.1), "mps": (0.6 * GIB, 1.2)}
"""By device: bytes outside of tensors, and the factor on the memory that a pass allocates.

The values for the CPU fit eight runs of toybox (batch size 8 to 64, 128 and 256 pixels, float32 and bfloat16) within
5 %, except one at batch size 64 with gradient checkpointing, which needed 30 % more. Those for CUDA and MPS are
guesses that have not been measured."""


@dataclass(frozen=True)
class Footprint:
    """Predicted peak of each phase of a run in bytes: on the device; on a CPU, of the whole process."""

    phases: Mapping[str, int]

    @property
    def peak(self) -> int:
        """The peak of the run."""
        return max(self.phases.values())

    @property
    def phase(self) -> str:
        """The phase with the highest peak."""
        return max(self.phases, key=self.phases.__getitem__)

    def excess(self, limit: int) -> int:
        """Return the sum of what the phases need beyond ``limit``."""
        return sum(max(0, peak - limit) for peak in self.phases.values())


@dataclass(frozen=True)
class BaseMemory:
    """Bytes of a base model's components, and the peaks of its passes without an adapter."""

    denoiser: int
    vae: int
    text_encoders: int
    encoding: int
    generation: int


Cache = dict[tuple[Any, ...], Any]
"""Intermediate results of predictions, by the settings that they depend on."""


def predict_footprint(
    config: TrainConfig, device: str, pipe: StableDiffusionPipeline | None = None, cache: Cache | None = None
) -> Footprint:
    """Return the predicted memory of a run on a "cpu", "cuda" or "mps" device.

    Args:
        config: the run.
        device: the type of the device.
        pipe: a loaded pipeline that will be trained instead of ``config.base``.
        cache: shared between predictions for the same base model, to avoid repeated work.

    Raises:
        UserError: the base model does not have the targets, or a layer is too small for the rank.
    """
    dtype = families.denoiser(pipe).dtype if pipe else DTYPES[config.dtype]
    shapes = meta_pipeline(pipe or config.base, dtype, config.prediction_type)
    if config.base_weights != "full":
        quantise(families.denoiser(shapes), config.base_weights)
    resolution = config.resolution or families.default_side(shapes)
    cache = {} if cache is None else cache
    base_key = (config.dtype, config.base_weights)
    step_key = (*base_key, config.batch_size, config.gradient_checkpointing, config.mixed_precision)
    base = cache[base_key] = cache.get(base_key) or measure_base(shapes, resolution)
    adapter = adapter_bytes(config, add_adapter(config, shapes).values())
    step = cache[step_key] = cache.get(step_key) or training_peak(config, shapes, resolution)
    components = base.denoiser + base.vae + base.text_encoders
    offloaded = 0 if device == "cpu" else base.vae + (0 if config.runs_text_encoder else base.text_encoders)
    constant, factor = OVERHEAD[device]
    phases = {"cache": components + factor * base.encoding}
    if config.uses_class_images:
        count = min(config.sample_batch_size, config.num_class_images)
        phases["class images"] = components + factor * base.generation * count
    if count := min(config.sample_batch_size, len(config.samples)):
        held = factor * step if uses_graph(config, device) else 0
        phases["samples"] = components + adapter + factor * base.generation * count + held
    phases["train"] = components - offloaded + adapter + factor * step
    return Footprint({name: round(constant + peak) for name, peak in phases.items()})


def predict_generation(base: str, dtype: str, device: str, prediction_type: str | None = None, images: int = 8) -> int:
    """Return the predicted memory in bytes of generating a batch of images on a "cpu", "cuda" or "mps" device.

    Raises BaseModelError if the configuration of the base model can't be read.
    """
    shapes = meta_pipeline(base, DTYPES[dtype], prediction_type)
    memory = measure_base(shapes, families.default_side(shapes))
    constant, factor = OVERHEAD[device]
    return round(constant + memory.denoiser + memory.vae + memory.text_encoders + factor * memory.generation * images)


def measure_base(pipe: StableDiffusionPipeline, resolution: int) -> BaseMemory:
    """Return the sizes of a pipeline's components and the peaks of its passes at a resolution in pixels."""
    text_encoders = sum(map(module_bytes, families.text_encoders(pipe)))
    passes = encoding_peak(pipe, resolution), generation_peak(pipe, resolution)
    return BaseMemory(module_bytes(families.denoiser(pipe)), module_bytes(pipe.vae), text_encoders, *passes)


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(tensor.nbytes for tensor in tensors(module))


def adapter_bytes(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> int:
    """Return the bytes of the adapter, the optimiser's state and the moving average, without gradients."""
    parameters = list(parameters)
    weights = sum(parameter.numel() for parameter in parameters) * (8 if config.ema_decay else 4)
    return weights + sum(state_bytes(config.optimizer, p.shape) for p in parameters if p.requires_grad)


STATE_VALUES = {"lion": 1, "lion8bit": 1, "adafactor": 1, "prodigy": 4}
"""Values in an optimiser's state per value of a parameter; 2 for those of the AdamW family."""


def state_bytes(optimizer: str, shape: torch.Size) -> int:
    """Return the bytes of the optimiser's state for a parameter of this shape; paged state counts, too."""
    if optimizer == "adafactor" and len(shape) > 1:
        return 4 * (shape.numel() // shape[-1] + shape.numel() // shape[-2])  # means of rows and columns
    eight_bits = optimizer.endswith("8bit") and shape.numel() >= 4096  # small ones stay in 32 bits
    return shape.numel() * STATE_VALUES.get(optimizer, 2) * (1 if eight_bits else 4)
