"""Choose the active adapters of a model, for whole batches or for groups of samples, and freeze them for inference."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from hra_diffusion.adapters.attachment import require_adapter, state_of
from hra_diffusion.adapters.layer import adapters_of
from hra_diffusion.adapters.model_hooks import adapted_modules, refresh


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
        refresh(model)


@contextlib.contextmanager
def batch_adapters(model: nn.Module, groups: Sequence[tuple[Mapping[str, float], int]]) -> Iterator[None]:
    """Context manager that gives contiguous groups of each batch their own adapters, as (strengths, count).

    An empty mapping is the base model. The groups repeat if the batch is a multiple of their size. Raises UserError for
    an unknown name, and while other adapters than these are merged.
    """
    state = state_of(model)
    for name in {name for strengths, _ in groups for name in strengths}:
        require_adapter(model, name)
    requested = tuple((tuple(strengths.items()), count) for strengths, count in groups)
    if state is None or (state.merged and {active for active, _ in requested} == {state.active}):
        yield
        return
    state.require_unmerged()
    previous = state.groups
    state.groups = requested
    try:
        refresh(model)
        yield
    finally:
        state.groups = previous
        refresh(model)


def set_rank_shares(model: nn.Module, shares: Tensor | None) -> None:
    """Set the share of the ranks that each sample uses in training (B,), for adapters with ``timestep_rank`` < 1.

    0 at the noisiest timestep to 1 without noise (see ``factors.rank_mask``). None, and models in eval mode, use all.
    """
    if state := state_of(model):
        state.rank_shares = shares


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Context manager for inference: the adapters of the model do not change within the block.

    The factors are prepared once instead of before every forward pass, and the active adapters of a layer become one
    low-rank update: every method then costs as much as LoRA. Changes of adapter parameters and of weights have no
    effect until the block ends; activating other adapters has. Gradients don't reach the adapters.
    """
    state = state_of(model)
    if state is None or state.frozen is not None:
        yield
        return
    state.frozen = {}
    try:
        refresh(model)
        yield
    finally:
        state.frozen = None
        for layer in adapted_modules(model):
            adapters_of(layer).chains = ()
