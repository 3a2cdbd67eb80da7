"""Which adapters the layers of a model apply, for the whole batch or for groups of its samples."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from hra_diffusion.adapters.factors import LayerFactors
from hra_diffusion.errors import UserError

ActiveAdapters = tuple[tuple[str, float], ...]
"""Adapters to apply, as (name, strength), in order: each adapts the weight as adapted by the ones before it."""

Fusion = Literal["compose", "geodesic"]
"""How several active adapters act on a layer: one after another, or as one fused rotation (see ``fusion.fuse``)."""
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)

Chain = tuple[LayerFactors, ...]
"""The factors of a layer's active adapters, in order."""


@dataclass
class AdapterState:
    """Adapters of one model. All its adapted layers share this object.

    ``active`` applies to the whole batch. If ``groups`` is set, contiguous groups of the batch, ``(active, count)``
    each, have their own adapters. The pattern repeats if the batch is a multiple of its size, as in classifier-free
    guidance.
    """

    active: ActiveAdapters = ()
    fusion: Fusion = "compose"
    """How ``active``, or each of the groups, acts on a layer."""
    groups: tuple[tuple[ActiveAdapters, int], ...] = ()
    merged: bool = False
    names: list[str] = field(default_factory=list)
    """Names of the attached adapters, in the order of attachment."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is known about the adapters, by name: fields of ``adapter_file.AdapterInfo``."""
    frozen_parameters: set[str] = field(default_factory=set)
    """Paths of the model's own parameters that ``attach`` froze."""
    version: int = 0
    """Increases when adapters are added or removed."""
    rank_shares: Tensor | None = None
    """Share of the ranks that each sample of a training batch uses (B,), see ``factors.rank_mask``; None for all."""
    batch: int = 0
    """Number of samples in the model's current forward pass; 0 if unknown."""
    running: bool = False
    """Whether the model's forward pass runs, for which the factors of all layers are prepared."""
    frozen: dict[tuple[ActiveAdapters, Fusion], list[Chain]] | None = None
    """Within ``activation.frozen``, the chain of every adapted layer by the active adapters and their fusion."""
    frozen_version: int = 0
    """The version of the adapters that are frozen."""

    @property
    def assignments(self) -> tuple[tuple[ActiveAdapters, int], ...]:
        """The groups of the batch; a single one, of any size, if the whole batch has the same adapters."""
        return self.groups or ((self.active, 1),)

    @property
    def selection(self) -> tuple[dict[str, float], Fusion]:
        """The arguments of ``activation.activate`` that make the same adapters active again."""
        return dict(self.active), self.fusion

    def sizes(self, counts: list[int], rows: int) -> list[int]:
        """Split ``rows``, the first dimension of a layer's input, into the groups with these counts of samples.

        A layer may have several rows per sample. Raises UserError if the counts don't divide the batch.
        """
        samples = self.batch if self.running and self.batch and rows % self.batch == 0 else rows
        size = sum(counts)
        if samples % size:
            raise UserError(f"the adapter groups cover {size} samples, which does not divide a batch of {samples}")
        return [count * (rows // samples) for count in counts] * (samples // size)

    def rank_shares_of(self, rows: list[int], training: bool) -> list[Tensor | None]:
        """``rank_shares`` for consecutive parts of a layer's input with these numbers of rows; None in eval mode."""
        if (shares := self.rank_shares) is None or not training:
            return [None] * len(rows)
        each = sum(rows) // len(shares)  # a layer may have several rows per sample
        return list(shares[:, None].expand(-1, each).flatten().split(rows))

    def require_unmerged(self) -> None:
        """Raise UserError while adapters are merged into the weights."""
        if self.merged:
            raise UserError("adapters are merged into the weights; unmerge them first")
