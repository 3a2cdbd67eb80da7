"""Choose the active adapters of a model, for whole batches or for groups of samples, and freeze them for inference."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from hra_diffusion.adapters import registry
from hra_diffusion.adapters.attachment import adapter_layers, require_adapter, state_of
from hra_diffusion.adapters.layer import adapters_of
from hra_diffusion.adapters.model_hooks import adapted_modules, refresh
from hra_diffusion.adapters.state import FUSIONS, ActiveAdapters, Fusion
from hra_diffusion.errors import UserError


def activate(model: nn.Module, strengths: Mapping[str, float], fusion: Fusion = "compose") -> None:
    """Make these adapters the active ones; an empty mapping activates none.

    Strength 1 is the adapter as trained, 0 the base model. Orthogonal methods stay orthogonal in between: they rotate
    by a fraction of the angle.

    Args:
        fusion: "compose" applies the adapters in this order, each to the weight that the previous ones left.
            "geodesic" fuses those that share a layer into one rotation, whatever their order (see ``fusion.fuse``).

    Raises UserError for an unknown name, for adapters that can't be fused, and while adapters are merged.
    """
    active = active_adapters(model, strengths, fusion)
    if state := state_of(model):
        state.require_unmerged()
        state.active, state.fusion = active, fusion
        refresh(model)


@contextlib.contextmanager
def batch_adapters(
    model: nn.Module, groups: Sequence[tuple[Mapping[str, float], int]], fusion: Fusion = "compose"
) -> Iterator[None]:
    """Context manager that gives contiguous groups of each batch their own adapters, as (strengths, count).

    An empty mapping is the base model. The groups repeat if the batch is a multiple of their size; all have the same
    ``fusion``. Raises UserError as ``activate`` does, and while other adapters than these are merged.
    """
    state = state_of(model)
    requested = tuple((active_adapters(model, strengths, fusion), count) for strengths, count in groups)
    merged = (state.active, state.fusion) if state and state.merged else None
    if state is None or {(active, fusion) for active, _ in requested} == {merged}:
        yield
        return
    state.require_unmerged()
    previous = state.groups, state.fusion
    state.groups, state.fusion = requested, fusion
    try:
        refresh(model)
        yield
    finally:
        state.groups, state.fusion = previous
        refresh(model)


def active_adapters(model: nn.Module, strengths: Mapping[str, float], fusion: Fusion) -> ActiveAdapters:
    """The adapters in the order in which they apply; fused ones are sorted, so that their order never matters.

    Raises UserError for an unknown name or fusion, and for the fusion of adapters that are not orthogonal.
    """
    for name in strengths:
        require_adapter(model, name)
    if fusion not in FUSIONS:
        raise UserError(f"unknown fusion {fusion!r}; use one of {', '.join(FUSIONS)}")
    if fusion == "compose":
        return tuple(strengths.items())
    used = [name for name, strength in strengths.items() if strength]
    if len(used) > 1 and (others := [name for name in used if not _is_orthogonal(model, name)]):
        methods = [registry.get_method(name) for name in registry.method_names()]
        titles = ", ".join(method.title for method in methods if method.parse({}).orthogonal)
        raise UserError(f'fusion "geodesic" is for rotations ({titles}), which {", ".join(map(repr, others))} '
                        f'{"is" if len(others) == 1 else "are"} not; use fusion "compose"')  # fmt: skip
    return tuple(sorted(strengths.items()))


def _is_orthogonal(model: nn.Module, name: str) -> bool:
    return all(adapter.config.orthogonal for adapter in adapter_layers(model, name).values())


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
