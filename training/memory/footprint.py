"""How much memory a run will hold, found before it starts: from the base's configuration, without its weights.

The run's phases are gone through by the models themselves on PyTorch's meta device, which computes shapes only, and
every tensor that comes and goes on the way is added up: there are no formulas that could drift from the code.
Attention counts as the fused kernels hold it. What no tensor shows is a rough constant (``OVERHEAD``): libraries, the
device's context, kernels' workspaces, gaps between allocations.
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.quantization import quantise
from hra_diffusion.models import families
from hra_diffusion.models.devices import vae_upcast
from hra_diffusion.models.families import Text
from hra_diffusion.models.loading import DTYPES
from hra_diffusion.models.meta import meta_pipeline
from training import objective
from training.config import TrainConfig
from training.session.model import Denoiser, add_adapter, enable_gradient_checkpointing

GIB = 2**30
OVERHEAD = {"cpu": (0.5 * GIB, 1.5), "cuda": (0.6 * GIB, 1.1), "mps": (0.6 * GIB, 1.2)}
"""By device, what is held beside the tensors in bytes, and what their working part is multiplied by.

The CPU's is fitted to eight runs of toybox (batch 8 to 64, 128 and 256 pixels, float32 and bfloat16), whose peaks it
gives within 5 %, but for one at batch 64 with gradient checkpointing that held 30 % more. CUDA's and MPS's are
guesses: nobody has measured them."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that each phase of a run holds on the device at its peak; on a CPU, the whole process."""

    phases: Mapping[str, int]

    @property
    def peak(self) -> int:
        """The most that any phase holds."""
        return max(self.phases.values())

    @property
    def phase(self) -> str:
        """The phase that holds it."""
        return max(self.phases, key=self.phases.__getitem__)

    def excess(self, limit: int) -> int:
        """How far the phases go beyond ``limit``, added up."""
        return sum(max(0, module_bytes - limit) for module_bytes in self.phases.values())


@dataclass(frozen=True)
class BaseMemory:
    """Bytes of a base's parts, of encoding a photo and of drawing a picture: what does not depend on how it learns."""

    unet: int
    vae: int
    text: int
    encoding: int
    drawing: int


Cache = dict[tuple[Any, ...], Any]
"""What was found out already in looking for a run that fits, by what it depends on."""


def predict_footprint(
    config: TrainConfig, device: str, pipe: StableDiffusionPipeline | None = None, known: Cache | None = None
) -> Footprint:
    """What a run with this configuration will hold on a "cpu", "cuda" or "mps" device.

    ``pipe``: the pipeline already held that will be trained, instead of ``config.base``. ``known`` is filled.
    Raises UserError for targets or a rank that the base can't have.
    """
    shapes = meta_pipeline(
        pipe or config.base, pipe.unet.dtype if pipe else DTYPES[config.dtype], config.prediction_type
    )
    if config.base_weights != "full":
        quantise(shapes.unet, config.base_weights)
    side = config.resolution or shapes.unet.config.sample_size * shapes.vae_scale_factor
    known = {} if known is None else known
    loaded = (config.dtype, config.base_weights)
    learning = (*loaded, config.batch_size, config.gradient_checkpointing, config.mixed_precision)
    base = known[loaded] = known.get(loaded) or measure_base(shapes, side)
    more = adapter_bytes(config, add_adapter(config, shapes).values())
    everything = base.unet + base.vae + base.text
    parked = 0 if device == "cpu" else base.vae + (0 if config.train_text_encoder else base.text)
    fixed, working = OVERHEAD[device]
    phases = {"cache": everything + working * base.encoding}
    if config.prior_loss_weight:
        phases["class images"] = everything + working * base.drawing * min(
            config.sample_batch_size, config.num_class_images
        )
    if count := min(config.sample_batch_size, len(config.sample_prompts)):
        phases["samples"] = everything + more + working * base.drawing * count
    step = known[learning] = known.get(learning) or training_peak(config, shapes, side)
    phases["train"] = everything - parked + more + working * step
    return Footprint({name: round(fixed + most) for name, most in phases.items()})


def measure_base(pipe: StableDiffusionPipeline, side: int) -> BaseMemory:
    """The parts of an outline, and what its passes hold at pictures of ``side`` pixels."""
    text = sum(map(module_bytes, families.text_encoders(pipe)))
    return BaseMemory(
        module_bytes(pipe.unet), module_bytes(pipe.vae), text, _encoding(pipe, side), _drawing(pipe, side)
    )


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(tensor.nbytes for tensor in _tensors(module))


def adapter_bytes(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of the adapter, the optimiser's state and the moving average; gradients are counted as they come."""
    sizes = [parameter.numel() for parameter in parameters]
    eight_bits = config.optimizer == "adamw8bit"
    moments = sum(size * (2 if eight_bits and size >= 4096 else 8) for size in sizes)  # small ones stay in 32 bits
    return moments + sum(sizes) * (8 if config.ema_decay else 4)


def _encoding(pipe: StableDiffusionPipeline, side: int) -> int:
    """Peak of encoding a photo and its caption."""

    def encode() -> None:
        _embedded(pipe, 1)
        with vae_upcast(pipe.vae) as vae:
            vae.encode(torch.empty(1, 3, side, side, dtype=vae.dtype))

    return _peak(encode, [pipe.vae, *families.text_encoders(pipe)])


def _drawing(pipe: StableDiffusionPipeline, side: int) -> int:
    """Peak of drawing a picture, with its unconditional half; several at once hold as many times as much."""

    def draw() -> None:
        latents = _latents(pipe, side, 2)
        Denoiser(pipe, False)(latents, torch.zeros(2), _embedded(pipe, 2))
        with vae_upcast(pipe.vae) as vae:
            vae.decode(latents[:1].to(vae.dtype))

    return _peak(draw, [pipe.unet, pipe.vae, *families.text_encoders(pipe)])


def training_peak(config: TrainConfig, pipe: StableDiffusionPipeline, side: int) -> int:
    """Peak of a step, its gradients included."""
    denoiser = Denoiser(pipe, config.train_text_encoder).train()
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(pipe)
    count = config.batch_size * (2 if config.prior_loss_weight else 1)
    text = _ids(pipe, count) if config.train_text_encoder else _text(pipe, count)
    models = [pipe.unet, *families.text_encoders(pipe)][: None if config.train_text_encoder else 1]

    def step() -> None:
        latents = _latents(pipe, side, count)
        prediction = denoiser(latents, torch.zeros(count), text)
        loss = objective.denoising_loss(prediction, torch.empty_like(latents), torch.ones(count), 0, 1.0)
        penalties = [attachment.penalty(model, config.name) for model in models]
        (loss + sum(penalty for penalty in penalties if penalty is not None)).backward()

    return _peak(step, models, True) + _autocast_copies(config, pipe.unet)


def _autocast_copies(config: TrainConfig, unet: nn.Module) -> int:
    """What mixed precision keeps of a wider base for the backward pass: its weights, once more, in two bytes each."""
    if config.mixed_precision == "no" or config.gradient_checkpointing or config.dtype != "float32":
        return 0
    return sum(2 * parameter.numel() for parameter in unet.parameters() if not parameter.requires_grad)


def _latents(pipe: StableDiffusionPipeline, side: int, count: int) -> Tensor:
    latent = side // pipe.vae_scale_factor
    return torch.empty(count, pipe.unet.config.in_channels, latent, latent, device=pipe.device)


def _ids(pipe: StableDiffusionPipeline, count: int) -> Text:
    encoders = cast(list[Any], families.text_encoders(pipe))
    length = encoders[0].config.max_position_embeddings
    return {"ids": torch.zeros(count, len(encoders), length, dtype=torch.long, device=pipe.device)}


def _embedded(pipe: StableDiffusionPipeline, count: int) -> Text:
    return families.of(pipe).embed(families.text_encoders(pipe), _ids(pipe, count)["ids"])


def _text(pipe: StableDiffusionPipeline, count: int) -> Text:
    """Cached embeddings of so many captions, as a step takes them."""
    with torch.no_grad():
        return {key: value.float() for key, value in _embedded(pipe, count).items()}


def _peak(work: Callable[[], None], models: Iterable[nn.Module], gradients: bool = False) -> int:
    """The most bytes that ``work`` holds at once on the models' device, beyond their own."""
    models = list(models)
    for module in (module for model in models for module in model.modules() if isinstance(module, Attention)):
        module.forward = _fused(type(module).forward.__get__(module))
    meter = Meter(tensor for model in models for tensor in _tensors(model))
    with torch.set_grad_enabled(gradients), next(_tensors(models[0])).device, meter:
        work()
    return meter.peak


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


class Meter(TorchDispatchMode):
    """Within the block, adds up the storages that come and go; those of ``known`` tensors don't count."""

    def __init__(self, known: Iterable[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _fused(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of an attention layer with the memory of a fused kernel, which the meta device does not choose."""

    @functools.wraps(forward)
    def fused(*args: Any, **kwargs: Any) -> Any:
        with _FusedAttention():
            return forward(*args, **kwargs)

    return fused


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _flash(*args, **(kwargs or {}))


def _flash(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, **more: Any,
) -> Tensor:  # fmt: skip
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask)[0]
