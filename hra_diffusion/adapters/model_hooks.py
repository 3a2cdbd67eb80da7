"""Hooks of an adapted model: prepare the factors of all its layers before each forward pass."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hra_diffusion.adapters.layer import adapters_of, adapters_on
from hra_diffusion.adapters.linear_map import execution_device
from hra_diffusion.adapters.preparation import Preparation
from hra_diffusion.adapters.state import AdapterState


class ModelHooks:
    """Pre-forward and forward hook of a model with adapters."""

    def __init__(self, state: AdapterState, model: nn.Module):
        self.state = state
        self.handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self.prepare, with_kwargs=True),
            model.register_forward_hook(self.finish, always_call=True),
        ]
        self._outermost = False
        self.update(model)

    def update(self, model: nn.Module) -> None:
        """Find the model's adapted layers again."""
        self.preparation = Preparation(self.state, list(adapted_modules(model)))

    def require_current(self, model: nn.Module) -> None:
        """Find the adapted layers again if adapters were added or removed elsewhere, as on a part of the model."""
        if self.preparation.version != self.state.version:
            self.update(model)

    def remove(self) -> None:
        """Remove the hooks from the model."""
        for handle in self.handles:
            handle.remove()

    def prepare(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """Pre-forward hook: prepare the factors, once for a model whose parts have hooks too."""
        state = self.state
        self._outermost = not state.running
        if state.merged or state.running:
            return
        batch = batch_tensor(args, kwargs)
        state.batch = 0 if batch is None else batch.shape[0]
        if state.frozen is None:
            self.require_current(model)
            own = execution_device(self.preparation.layers[0])
            self.preparation.assign(own if batch is None else batch.device)
        state.running = True

    def finish(self, *_: Any) -> None:
        """Forward hook, also called after an error."""
        if self._outermost:
            self.state.running = False


def adapted_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The model's adapted layers."""
    return (module for module in model.modules() if adapters_on(module) is not None)


def hooks_of(model: nn.Module) -> ModelHooks | None:
    """The model's hooks, or None for a model without adapters."""
    owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, ModelHooks)), None)


def batch_tensor(args: tuple, kwargs: dict) -> Tensor | None:
    """The tensor among a model's arguments with the most rows: its first dimension is the batch."""
    largest = None
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim > 1 and (largest is None or value.shape[0] > largest.shape[0]):
            largest = value
    return largest


def refresh(model: nn.Module) -> None:
    """Prepare the factors of the active adapters again, if they are frozen."""
    first = next(adapted_modules(model), None)
    if first is None or (state := adapters_of(first).state).frozen is None:
        return
    if state.frozen_version != state.version:
        state.frozen, state.frozen_version = {}, state.version
    if hooks := hooks_of(model):
        hooks.require_current(model)
    preparation = hooks.preparation if hooks else Preparation(state, list(adapted_modules(model)))
    with torch.no_grad():
        preparation.assign(execution_device(first))
