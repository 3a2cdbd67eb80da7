"""What an adapter does to one layer, as small tensors: the result of every method.

The adapted weight is ``W′ = (I + L_up · L_down) · diag(scale) · (W (I + R_up · R_down) + U_up · U_down)`` with the left
factors L, the right factors R and the update U, each of low rank. Block-diagonal matrices may take the place of R. A
method sets those that it uses. All functions are pure functions of tensors; those without a weight accept factors of
several layers, stacked along a first dimension.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Factors = tuple[Tensor, Tensor]
"""(up (d_out, k), down (k, d_in)) of a matrix ``up · down`` of rank k."""

MIN_SCALE = 1e-4
"""Smallest scale of an output that a low-rank form divides by; scales closer to 0 are raised, to at most 3e-4."""


Thinning = Callable[[Tensor], Tensor]
"""What training does to the activations (rows, …, k) between the two factors."""


class LowRank(NamedTuple):
    """An adapted weight as a low-rank update, ``W′ = diag(scale) (W + up · down)``. Without ``scale``, a plain LoRA.

    ``up`` (d_out, k), ``down`` (k, d_in), ``scale`` (d_out,) or None for ones.
    """

    up: Tensor
    down: Tensor
    scale: Tensor | None = None


class LayerFactors(NamedTuple):
    """Factors of one adapter on one layer, see above; None for a part that the method does not use.

    ``right`` (d_in, k), (k, d_in); ``update`` (d_out, k), (k, d_in); ``scale`` (d_out,); ``left`` (d_out, k),
    (k, d_out). ``shift`` (d_out,) and ``offset`` (k,) leave the layer's bias out of ``scale`` and ``left``.

    ``blocks`` (m, n, b, b): m stages of n square blocks that act on the input (see ``rotate_blocks``). ``magnitude``
    (d_out,): the norm of each output's weight in W′, from which ``with_weight`` computes ``scale``.

    In training a share ``dropout`` of the k activations between the factors is set to 0. They are made of runs of
    ``units`` ranks, of which at least a share ``least_rank`` is used at every timestep (see ``rank_mask``).
    """

    right: Factors | None = None
    update: Factors | None = None
    scale: Tensor | None = None
    left: Factors | None = None
    shift: Tensor | None = None
    offset: Tensor | None = None
    blocks: Tensor | None = None
    magnitude: Tensor | None = None
    dropout: float = 0.0
    units: int = 1
    least_rank: float = 1.0

    @property
    def depend_on_bias(self) -> bool:
        """Whether the factors for a layer depend on its bias, see ``with_bias``."""
        return self.scale is not None or self.left is not None or self.magnitude is not None

    def tensors(self) -> Iterator[Tensor]:
        """All tensors in order."""
        for part in self:
            yield from part if isinstance(part, tuple) else (part,) if isinstance(part, Tensor) else ()

    def map(self, function: Callable[[Tensor], Tensor]) -> "LayerFactors":
        """The factors with ``function`` applied to each tensor."""
        parts = (
            (function(part[0]), function(part[1])) if isinstance(part, tuple) else
            function(part) if isinstance(part, Tensor) else part
            for part in self
        )  # fmt: skip
        return LayerFactors(*cast(Any, parts))

    def unstack(self) -> list["LayerFactors"]:
        """The factors of each layer, of stacked factors."""
        return [self._with(iter(row)) for row in zip(*(tensor.unbind() for tensor in self.tensors()), strict=True)]

    def split(self, counts: list[int]) -> list["LayerFactors"]:
        """Split stacked factors into stacks of ``counts`` layers."""
        if len(counts) == 1:
            return [self]
        return [self._with(iter(row)) for row in zip(*(tensor.split(counts) for tensor in self.tensors()), strict=True)]

    def narrow(self, d_out: int, d_in: int) -> "LayerFactors":
        """Stacked factors of padded layers without the padding."""
        right, update, scale, left, shift, *_ = self
        return self._replace(
            right=(right[0][:, :d_in], right[1][..., :d_in]) if right else None,
            update=(update[0][:, :d_out], update[1][..., :d_in]) if update else None,
            scale=None if scale is None else scale[:, :d_out],
            left=(left[0][:, :d_out], left[1][..., :d_out]) if left else None,
            shift=None if shift is None else shift[:, :d_out],
            blocks=None if self.blocks is None else self.blocks[:, :, : d_in // self.blocks.shape[-1]],
            magnitude=None if self.magnitude is None else self.magnitude[:, :d_out],
        )

    def _with(self, tensors: Iterator[Tensor]) -> "LayerFactors":
        return self.map(lambda _: next(tensors))

    def with_weight(self, weight: Tensor, strength: float) -> "LayerFactors":
        """The factors for a layer with this weight (d_out, d_in), with ``magnitude`` replaced by the scale it implies.

        The norms of ``W + up · down`` follow from those of W, up and down. They count as constants in the gradient
        (DoRA, arXiv 2402.09353, section 4.3). At strength s the norm of an output goes from that of W to its magnitude.
        """
        if self.magnitude is None or self.update is None:
            return self
        with torch.no_grad():
            up, down = self.update
            own = weight.to(up.dtype).square().sum(dim=1)
            mixed = 2 * weight.to(up.dtype) @ down.mT + up @ (down @ down.mT)
            norms = (own + (mixed * up).sum(dim=1)).clamp(min=1e-30).sqrt()
            own = own.sqrt()
        return self._replace(scale=torch.lerp(own, self.magnitude, strength) / norms, magnitude=None)

    def with_bias(self, bias: Tensor | None) -> "LayerFactors":
        """The factors for a layer with this bias (d_out,), which no factor changes."""
        if bias is None:
            return self
        shift = None if self.scale is None else bias - self.scale * bias
        offset = None if self.left is None else -(self.left[1] @ bias[..., None])[..., 0]
        return self._replace(shift=shift, offset=offset)


def thinning(factors: LayerFactors, rank_shares: Tensor | None) -> Thinning | None:
    """What training does to the activations between the factors, or None for nothing.

    ``rank_shares`` (rows,): see ``rank_mask``; None uses all ranks.
    """
    masked = rank_shares is not None and factors.least_rank < 1
    if not factors.dropout and not masked:
        return None

    def thin(hidden: Tensor) -> Tensor:
        if factors.dropout:
            hidden = F.dropout(hidden, factors.dropout)
        if rank_shares is None or not masked:
            return hidden
        mask = rank_mask(rank_shares, hidden.shape[-1], factors.units, factors.least_rank)
        return hidden * mask.view(len(mask), *[1] * (hidden.ndim - 2), -1).to(hidden.dtype)

    return thin


def rank_mask(rank_shares: Tensor, size: int, units: int, least_rank: float) -> Tensor:
    """Which of ``size`` activations, runs of ``units`` ranks, each sample uses: (B, size), boolean.

    The first ``m + ⌊(units − m) · share⌋`` ranks, with ``m = least_rank · units``, rounded and at least 1, and a share
    (B,) from 0 at the noisiest timestep to 1 without noise: T-LoRA (arXiv 2507.05964).
    """
    least = max(1, round(least_rank * units))
    active = least + ((units - least) * rank_shares).floor()
    return torch.arange(size, device=rank_shares.device) % units < active[:, None]


def add_low_rank(
    y: Tensor, x: Tensor, factors: Factors, offset: Tensor | None = None, thin: Thinning | None = None
) -> Tensor:
    """``y + x · downᵀ · upᵀ`` for rows y (…, d_out) and x (…, d_in): two matrix products, the second adds.

    ``offset`` (k,) is added to ``x · downᵀ``, to which ``thin`` is applied.
    """
    up, down = factors
    hidden = F.linear(x, down, offset)
    if thin:
        hidden = thin(hidden)
    return torch.addmm(y.reshape(-1, y.shape[-1]), hidden.reshape(-1, hidden.shape[-1]), up.mT).view(y.shape)


def rotate(x: Tensor, factors: Factors, offset: Tensor | None = None, thin: Thinning | None = None) -> Tensor:
    """``add_low_rank(x, x, …)`` for rows x (…, d), with one operation less in its backward pass."""
    if thin:
        return add_low_rank(x, x, factors, offset, thin)
    up, down = factors
    rows = x.reshape(-1, x.shape[-1]).to(up.dtype)  # under autocast x may be wider
    return _Rotation.apply(rows, up, down, offset)[0].view(x.shape)


def rotate_blocks(x: Tensor, blocks: Tensor, transposed: bool = False) -> Tensor:
    """Rows x (…, d) times the product of the stages of ``blocks`` (m, n, b, b), or times its transpose; d = n · b.

    The last stage comes first. Stage i is block-diagonal for halves of blocks that are 2^i of them apart: a butterfly.
    Stage 0 alone is a block-diagonal matrix. Source: BOFT, arXiv 2311.06243, with PEFT's order of stages.
    """
    stages, _, size, _ = blocks.shape
    for stage in range(stages) if transposed else reversed(range(stages)):
        own = blocks[stage].mT if transposed else blocks[stage]
        apart = _interleaved(x, 2, 2**stage, size // 2) if stage else x
        turned = torch.einsum("...nb,nbc->...nc", apart.unflatten(-1, (-1, size)), own).flatten(-2)
        x = _interleaved(turned, 2**stage, 2, size // 2) if stage else turned
    return x


def _interleaved(x: Tensor, first: int, second: int, size: int) -> Tensor:
    """Rows with their pieces of ``size`` reordered: the transpose of each run of first · second."""
    return x.unflatten(-1, (-1, first, second, size)).transpose(-3, -2).flatten(-4)


class _Rotation(torch.autograd.Function):
    """Its backward pass adds the gradient of the sum's first term within a matrix product."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, up: Tensor, down: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden = F.linear(x, down, offset)
        return torch.addmm(x, hidden, up.mT), hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        grad, (x, up, down, offset, hidden) = gradients[0], ctx.saved_tensors
        if grad is None:
            return None, None, None, None
        if torch.is_grad_enabled():  # for second derivatives, through the hidden activations too
            hidden = F.linear(x, down, offset)
        hidden_grad = grad @ up
        x_grad = torch.addmm(grad, hidden_grad, down) if ctx.needs_input_grad[0] else None
        offset_grad = hidden_grad.sum(0) if ctx.needs_input_grad[3] else None
        return x_grad, grad.mT @ hidden, hidden_grad.mT @ x, offset_grad


def adapted_weight(weight: Tensor, factors: LayerFactors) -> Tensor:
    """W′ (d_out, d_in) in the weight's dtype."""
    factors = factors.map(lambda tensor: tensor.to(weight.dtype))
    right, update, scale, left, *_ = factors
    if factors.blocks is not None:
        weight = rotate_blocks(weight, factors.blocks, transposed=True)
    if right:
        weight = torch.addmm(weight, weight @ right[0], right[1])
    if update:
        weight = torch.addmm(weight, update[0], update[1])
    if scale is not None:
        weight = weight * scale[:, None]
    return torch.addmm(weight, left[0], left[1] @ weight) if left else weight


def compose(weight: Tensor, chain: Iterable[LayerFactors]) -> LowRank:
    """Adapters, applied in order, as one update of ``weight`` (d_out, d_in), in the weight's dtype.

    ``weight`` is multiplied by narrow matrices only, except for blocks: their update has full rank. ``chain`` has at
    least one adapter.
    """
    parts: list[Factors] = []
    scale: Tensor | None = None
    for factors in chain:
        factors = factors.map(lambda tensor: tensor.to(weight.dtype))
        right, update, own, left, *_ = factors
        if factors.blocks is not None:
            before = sum((up @ down for up, down in parts), weight)
            parts.append(_full_rank(rotate_blocks(before, factors.blocks, transposed=True) - before))
        if right:
            columns = sum((up @ (down @ right[0]) for up, down in parts), weight @ right[0])
            parts.append((columns, right[1]))
        if update:
            parts.append((_divided(update[0], scale), update[1]))
        if own is not None:
            own = torch.where(own.abs() < MIN_SCALE, own + 2 * MIN_SCALE, own)  # 0 has no such form
            scale = own if scale is None else own * scale
        if left:
            scaled = left[1] if scale is None else left[1] * scale
            rows = sum(((scaled @ up) @ down for up, down in parts), scaled @ weight)
            parts.append((_divided(left[0], scale), rows))
    if not parts:  # a scale alone
        parts.append((weight.new_zeros(len(weight), 1), weight.new_zeros(1, weight.shape[1])))
    ups, downs = zip(*parts, strict=True)
    return LowRank(torch.cat(ups, dim=1), torch.cat(downs), scale)


def _full_rank(change: Tensor) -> Factors:
    """(up, down) of a matrix (d_out, d_in), one of which is the identity."""
    wide = change.shape[0] <= change.shape[1]
    identity = torch.eye(min(change.shape), dtype=change.dtype, device=change.device)
    return (identity, change) if wide else (change, identity)


def _divided(up: Tensor, scale: Tensor | None) -> Tensor:
    return up if scale is None else up / scale[:, None]
