"""Many users' adapters in one batch: every sample has its own, applied by one batched product per layer.

The low-rank factors of the samples' adapters are stacked, padded with zeros to one rank, and multiplied by
``torch.bmm``, as in Punica (arXiv 2310.18547) and S-LoRA (arXiv 2311.03285). The adapters are not attached to the
model: ``prepare`` keeps their factors in host memory, and hooks apply those of one batch.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from hra_diffusion.adapters import attachment, loading, registry
from hra_diffusion.adapters.factors import LayerFactors, rotate_blocks
from hra_diffusion.adapters.householder import own_precision
from hra_diffusion.adapters.linear_map import (
    adapted_output,
    as_matrix,
    compute_dtype,
    execution_device,
    matrix_shape,
    offloaded_weights,
)
from hra_diffusion.adapters.preparation import one_update
from hra_diffusion.adapters.registry import Adapter
from hra_diffusion.adapters.targets import target_layer
from hra_diffusion.adapters.token_embeddings import PARAMETER, TokenVectors, embedding_of

RANK_BUCKETS = (16, 64, 256)
"""Adapters share a batch if their ranks fall into the same bucket, up to these limits: a product costs what the largest
rank does. Updates of a higher rank share one with those of their rank alone."""


@dataclass(frozen=True, eq=False)
class PreparedAdapter:
    """An adapter at one strength, for a batch with others: its factors by component and layer, in host memory.

    ``vectors`` are trained embeddings of a text encoder. The factors of a layer are one update, with a scale and a
    shift for some methods; those of OFT and BOFT on linear layers are blocks.
    """

    subject: str
    """The adapter's first subject in prompts: "sks dog"."""
    strength: float
    layers: Mapping[str, Mapping[str, LayerFactors]]
    vectors: Mapping[str, TokenVectors]

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        factors = [tensor for layers in self.layers.values() for own in layers.values() for tensor in own.tensors()]
        return sum(tensor.nbytes for tensor in [*factors, *(own.vectors for own in self.vectors.values())])

    @property
    def kind(self) -> Hashable:
        """Adapters of one kind can share a batch: the bucket of their rank, and stages and size of their blocks."""
        factors = [own for layers in self.layers.values() for own in layers.values()]
        rank = max((own.update[1].shape[0] for own in factors if own.update), default=0)
        bucket = next((limit for limit in RANK_BUCKETS if rank <= limit), rank)
        blocks = {(own.blocks.shape[0], own.blocks.shape[-1]) for own in factors if own.blocks is not None}
        return bucket, frozenset(blocks)


def prepare(path: Path, components: Mapping[str, nn.Module], strength: float = 1.0) -> PreparedAdapter:
    """Read an adapter file and compute its factors for these components, which don't change.

    The components may run meanwhile. Raises AdapterFileError as ``loading.load`` does.
    """
    info, tensors = loading.read_for(path, components)
    method = registry.get_method(info.method)
    layers: dict[str, dict[str, LayerFactors]] = {}
    for component, probes in info.fingerprint.items():
        ranks = info.ranks.get(component)
        configs = attachment.plan_attachment(
            components[component], info.method, info.options, name=info.name, targets=list(probes), ranks=ranks
        )
        layers[component] = {}
        for layer_path, config in configs.items():
            layer = target_layer(components[component], layer_path)
            d_out, d_in = matrix_shape(layer)
            names = method.shapes(config, d_in, d_out)
            values = {name: tensors[f"{component}.{layer_path}.{name}"] for name in names}
            adapter = method.build(config, d_in, d_out, Generator())
            layers[component][layer_path] = _prepared_factors(layer, adapter, values, strength)
    vectors = {
        component: TokenVectors(tokens, tensors[f"{component}.{PARAMETER}"])
        for component, tokens in info.embeddings.items()
    }
    return PreparedAdapter(info.subject, strength, layers, vectors)


@torch.no_grad()
def _prepared_factors(
    layer: nn.Module, adapter: Adapter, values: Mapping[str, Tensor], strength: float
) -> LayerFactors:
    device = execution_device(layer)
    with own_precision(device), offloaded_weights([layer]):
        weight = as_matrix(layer).to(device, torch.float32)
        on_device = {name: value.to(device, torch.float32) for name, value in values.items()}
        factors = adapter.factors(on_device, strength).with_weight(weight, strength)
        if factors.blocks is not None and isinstance(layer, nn.Linear):
            factors = factors.with_bias(None if (bias := cast(Tensor | None, layer.bias)) is None else bias.to(weight))
        else:
            factors = one_update(layer, weight, [factors])
    return factors.map(lambda tensor: tensor.to("cpu", compute_dtype(layer)).contiguous())


@contextlib.contextmanager
def gathered(model: nn.Module, component: str, samples: Sequence[PreparedAdapter | None]) -> Iterator[None]:
    """Context manager that gives each sample of a batch its own adapter; None is the base model.

    The first dimension of every layer's input is the batch. The samples repeat if it is a multiple of their number, as
    in classifier-free guidance. ``component``: the model's name in adapter files, such as "unet".
    """
    own = [sample.layers.get(component, {}) if sample else {} for sample in samples]
    vectors = [sample.vectors.get(component) if sample else None for sample in samples]
    with contextlib.ExitStack() as stack:
        for path in dict.fromkeys(path for layers in own for path in layers):
            layer = target_layer(model, path)
            hooks = _LayerHooks(layer, [layers.get(path) for layers in own])
            stack.callback(layer.register_forward_pre_hook(hooks.adapt_input, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(hooks.adapt_output, with_kwargs=True).remove)
        if any(vectors):
            embedding = cast(nn.Embedding, embedding_of(model))
            moved = [own and TokenVectors(own.tokens, own.vectors).to(embedding.weight.device) for own in vectors]
            hook = _embedding_hook(moved, [sample.strength if sample else 0.0 for sample in samples])
            stack.callback(embedding.register_forward_hook(hook).remove)
        yield


class _LayerHooks:
    """Hooks of a layer that apply the factors of each sample, or one adapter's to all of them."""

    def __init__(self, layer: nn.Module, samples: Sequence[LayerFactors | None]):
        self.count, first = len(samples), samples[0]
        self.alone = first is not None and all(sample is first for sample in samples)
        factors = cast(LayerFactors, first) if self.alone else _stack(samples, *matrix_shape(layer))
        device = execution_device(layer)
        self.factors = factors.map(lambda tensor: tensor.to(device))
        self.repeated: dict[tuple[int, torch.dtype], LayerFactors] = {}

    def adapt_input(self, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Pre-forward hook: rotate the input by blocks."""
        if self.factors.blocks is None:
            return None
        x, *others = args or (kwargs["input"],)
        blocks = cast(Tensor, self._for(x).blocks)
        rotated = rotate_blocks(x, blocks) if self.alone else torch.vmap(rotate_blocks)(x, blocks)
        return (rotated, *others), {key: value for key, value in kwargs.items() if args or key != "input"}

    def adapt_output(self, layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        """Forward hook: apply update and scale."""
        x = args[0] if args else kwargs["input"]
        factors = self._for(x)
        return adapted_output(layer, output, x, factors) if self.alone else _adapted(layer, output, x, factors)

    def _for(self, x: Tensor) -> LayerFactors:
        """The factors in the dtype of ``x``, repeated for all of its rows; kept for the next forward pass."""
        key = x.shape[0], x.dtype
        if key not in self.repeated:
            times = 1 if self.alone else x.shape[0] // self.count
            self.repeated[key] = self.factors.map(
                lambda tensor: (tensor.repeat(times, *[1] * (tensor.ndim - 1)) if times > 1 else tensor).to(x.dtype)
            )
        return self.repeated[key]


def _stack(samples: Sequence[LayerFactors | None], d_out: int, d_in: int) -> LayerFactors:
    """The factors of all samples, stacked along a first dimension, padded to one rank, with neutral ones for None."""
    found = [sample for sample in samples if sample is not None]
    like = next(found[0].tensors())
    rank = max((sample.update[1].shape[0] for sample in found if sample.update), default=0)
    up, down = like.new_zeros(len(samples), d_out, rank), like.new_zeros(len(samples), rank, d_in)
    scale, shift = like.new_ones(len(samples), d_out), like.new_zeros(len(samples), d_out)
    blocks = next((sample.blocks for sample in found if sample.blocks is not None), None)
    rotations = None
    if blocks is not None:
        rotations = torch.eye(blocks.shape[-1], dtype=like.dtype).repeat(len(samples), *blocks.shape[:2], 1, 1)
    for i, sample in enumerate(samples):
        if sample is None:
            continue
        if sample.update:
            own = sample.update[1].shape[0]
            up[i, :, :own], down[i, :own] = sample.update
        for values, part in ((scale, sample.scale), (shift, sample.shift), (rotations, sample.blocks)):
            if values is not None and part is not None:
                values[i] = part
    scaled = any(sample.scale is not None for sample in found)
    return LayerFactors(
        update=(up, down) if rank else None, scale=scale if scaled else None, shift=shift if scaled else None,
        blocks=rotations,
    )  # fmt: skip


def _adapted(layer: nn.Module, y: Tensor, x: Tensor, factors: LayerFactors) -> Tensor:
    """The layer's output ``y`` for ``x``, with every row's own update, scale and shift."""
    rows, convolves = len(x), isinstance(layer, nn.Conv2d)
    flat = y.flatten(2) if convolves else y.reshape(rows, -1, y.shape[-1])
    if factors.update:
        up, down = factors.update
        if convolves:
            flat = torch.baddbmm(flat, up, _convolved(cast(nn.Conv2d, layer), x, down))
        else:
            flat = torch.baddbmm(flat, torch.bmm(x.reshape(rows, -1, x.shape[-1]), down.mT), up.mT)
    if factors.scale is not None:
        scale, shift = (part.unsqueeze(2 if convolves else 1) for part in (factors.scale, cast(Tensor, factors.shift)))
        flat = torch.addcmul(shift, flat, scale)
    return flat.view(y.shape)


def _convolved(layer: nn.Conv2d, x: Tensor, down: Tensor) -> Tensor:
    """Every row of ``x`` (B, C, H, W) convolved with its own kernels ``down`` (B, r, C·k·k), as (B, r, pixels)."""
    kernels = down.reshape(-1, layer.in_channels, *layer.kernel_size)
    together = x.reshape(1, -1, *x.shape[2:])
    geometry: Any = layer.stride, layer.padding, layer.dilation
    return F.conv2d(together, kernels, None, *geometry, groups=len(x)).view(len(x), down.shape[1], -1)


def _embedding_hook(vectors: Sequence[TokenVectors | None], strengths: Sequence[float]) -> Callable[..., Tensor]:
    """Forward hook of a token embedding that replaces the vectors of each sample's triggers."""

    def adapt(embedding: nn.Module, args: tuple, output: Tensor) -> Tensor:
        (ids,) = args
        rows = []
        for i, row in enumerate(output.split(1)):
            own, strength = vectors[i % len(vectors)], strengths[i % len(vectors)]
            rows.append(own.replace(ids[i : i + 1], row, strength) if own is not None and strength else row)
        return torch.cat(rows)

    return adapt
