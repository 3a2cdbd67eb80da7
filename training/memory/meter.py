"""Peak memory of a function's tensors, counted from the storages that it allocates, on any device ("meta" included)."""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ATTENTION = (Attention, AttentionModuleMixin)
"""Classes of the attention layers of diffusers' models: a UNet's, VAE's and SD 3's, and FLUX.2's."""


def peak_bytes(function: Callable[[], None], models: Iterable[nn.Module], gradients: bool = False) -> int:
    """Return the peak of the bytes that a call allocates on the models' device, without the models' own tensors.

    Attention layers of the models use a fused kernel from now on.
    """
    models = list(models)
    for module in (module for model in models for module in model.modules() if isinstance(module, ATTENTION)):
        module.forward = _with_fused_attention(type(module).forward.__get__(module))
    meter = AllocationMeter(tensor for model in models for tensor in tensors(model))
    with torch.set_grad_enabled(gradients), next(tensors(models[0])).device, meter:
        function()
    return meter.peak


def tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the module's parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


class AllocationMeter(TorchDispatchMode):
    """Within the block, count the bytes of the storages in use; those of ``excluded`` tensors are not counted.

    Attributes:
        live: bytes in use.
        peak: maximum of ``live``.
    """

    def __init__(self, excluded: Iterable[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in excluded}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _call(func, args, kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


_results: dict[Any, Any] = {}
"""Results of operations by ``_key``: sizes, strides and data types, None where one is not a new tensor."""


def _call(func: Any, args: Any, kwargs: Any) -> Any:
    """Call an operation. The shapes of its results on "meta" are computed once: PyTorch computes them in Python."""
    if not _is_functional(func):
        return func(*args, **kwargs)
    arguments = [*args, *kwargs.values()]
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    if not tensors or not all(tensor.is_meta for tensor in tensors):
        return func(*args, **kwargs)
    key = func, len(args), *kwargs, *map(_key, arguments)
    if key not in _results:
        result = func(*args, **kwargs)
        _results[key] = _metadata(result, tensors)
        return result
    known = _results[key]
    if known is None:
        return func(*args, **kwargs)
    return tree_map_only(_Metadata, _Metadata.new_tensor, known)


@functools.cache
def _is_functional(func: Any) -> bool:
    """Whether an operation neither changes its arguments nor returns views of them, by its signature."""
    return not func._schema.is_mutable and not any(value.alias_info for value in func._schema.returns)


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.size(), value.stride(), value.dtype
    return tuple(map(_key, value)) if isinstance(value, list | tuple) else (type(value), value)


@dataclass(frozen=True)
class _Metadata:
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def new_tensor(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


def _metadata(result: Any, arguments: list[Tensor]) -> Any:
    """Return an operation's result with ``_Metadata`` in place of tensors, None if one is not new or not on "meta"."""
    found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    given, new = ({tensor.untyped_storage()._cdata for tensor in own} for own in (arguments, found))
    if given & new or len(new) < len(found) or not all(tensor.is_meta for tensor in found):
        return None
    return tree_map_only(Tensor, lambda tensor: _Metadata(tensor.size(), tensor.stride(), tensor.dtype), result)


def _with_fused_attention(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return an attention layer's forward with the memory of a fused kernel, which is not selected on "meta"."""

    @functools.wraps(forward)
    def fused(*args: Any, **kwargs: Any) -> Any:
        with _FusedAttention():
            return forward(*args, **kwargs)

    return fused


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _flash_attention(*args, **(kwargs or {}))


def _flash_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, **options: Any,
) -> Tensor:  # fmt: skip
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask)[0]
