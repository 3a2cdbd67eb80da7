"""Which adapters the layers of a model apply, for the whole batch or for groups of its samples."""

from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from hra_diffusion.errors import UserError

ActiveAdapters = tuple[tuple[str, float], ...]
"""Adapters to apply, as (name, strength), in order: each adapts the weight as adapted by the ones before it."""


@dataclass
class AdapterState:
    """Adapters of one model. All its adapted layers share this object.

    ``active`` applies to the whole batch. If ``groups`` is set, contiguous groups of the batch, ``(active, count)``
    each, have their own adapters. The pattern repeats if the batch is a multiple of its size, as in classifier-free
    guidance.
    """

    active: ActiveAdapters = ()
    groups: tuple[tuple[ActiveAdapters, int], ...] = ()
    merged: bool = False
    names: list[str] = field(default_factory=list)
    """Names of the attached adapters, in the order of attachment."""
    hooks: dict[str, RemovableHandle] = field(default_factory=dict)
    """Forward pre-hooks of the model, by adapter name."""

    def split(self, batch: Tensor) -> list[tuple[ActiveAdapters, Tensor]]:
        """Split a batch into its groups, each with its active adapters.

        Raises UserError if the size of the batch is not a multiple of the groups' size.
        """
        if not self.groups:
            return [(self.active, batch)]
        size = sum(count for _, count in self.groups)
        if batch.shape[0] % size:
            raise UserError(
                f"the adapter groups cover {size} samples, which does not divide a batch of {batch.shape[0]}"
            )
        repeated = self.groups * (batch.shape[0] // size)
        parts = batch.split([count for _, count in repeated])
        return [(active, part) for (active, _), part in zip(repeated, parts, strict=True)]

    def require_unmerged(self) -> None:
        """Raise UserError while adapters are merged into the weights."""
        if self.merged:
            raise UserError("adapters are merged into the weights; unmerge them first")
