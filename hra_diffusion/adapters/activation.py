"""Choose the active adapters of a model, for whole batches or for groups of samples."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from hra_diffusion.adapters.attachment import require_adapter, state_of


def activate(model: nn.Module, strengths: Mapping[str, float]) -> None:
    """Make these adapters the active ones, applied in this order; an empty mapping activates none.

    Strength 1 is the adapter as trained, 0 the base model. Orthogonal methods stay orthogonal in between: they rotate
    by a fraction of the angle. Raises UserError for an unknown name, and while adapters are merged.
    """
    for name in strengths:
        require_adapter(model, name)
    if state := state_of(model):
        state.require_unmerged()
        state.active = tuple(strengths.items())


@contextlib.contextmanager
def batch_adapters(model: nn.Module, groups: Sequence[tuple[Mapping[str, float], int]]) -> Iterator[None]:
    """Context manager that gives contiguous groups of each batch their own adapters, as (strengths, count).

    An empty mapping is the base model. The groups repeat if the batch is a multiple of their size. Raises UserError for
    an unknown name, and while adapters are merged.
    """
    state = state_of(model)
    for name in {name for strengths, _ in groups for name in strengths}:
        require_adapter(model, name)
    if state is None:
        yield
        return
    state.require_unmerged()
    previous = state.groups
    state.groups = tuple((tuple(strengths.items()), count) for strengths, count in groups)
    try:
        yield
    finally:
        state.groups = previous
