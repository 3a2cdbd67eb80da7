"""Convert one layer of another program's adapter file to an equivalent LoRA.

The conversion is exact. DoRA (arXiv 2402.09353), rotations and some initialisations depend on the layer's weight.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hra_diffusion.adapters.factors import Factors
from hra_diffusion.interop.layer_tensors import (
    LayerTensors,
    LayerTensorsError,
    check_shape,
    full_rank_factors,
    in_float64,
    matrix_shape,
)
from hra_diffusion.interop.low_rank_forms import (
    full_factors,
    glora_factors,
    ia3_factors,
    loha_factors,
    lokr_factors,
    lora_factors,
)
from hra_diffusion.interop.peft_settings import METHODS
from hra_diffusion.interop.rotation_forms import boft_factors, diagonal_oft_factors, hra_factors, oft_factors
from hra_diffusion.interop.transformer_keys import swap_halves

FORMS = {
    "hada_": ("LoHa", loha_factors),
    "lokr_": ("LoKr", lokr_factors),
    "diff": ("full difference", full_factors),
    "hra_u": ("HRA", hra_factors),
    "oft_R": ("OFT", oft_factors),
    "boft_": ("BOFT", boft_factors),
    "oft_blocks": ("diag-OFT or BOFT", diagonal_oft_factors),
    "glora_": ("GLoRA", glora_factors),
    "ia3": ("IA³", ia3_factors),
    "down": ("LoRA", lora_factors),
    "up": ("LoRA", lora_factors),
}
"""Prefix of a part -> (name of the method, conversion to factors). The first prefix that a layer has decides."""


def _form(tensors: LayerTensors) -> tuple[str, Callable[[Tensor, LayerTensors], Factors]] | None:
    return next((form for prefix, form in FORMS.items() if tensors.has(prefix)), None)


def kind(tensors: LayerTensors) -> str:
    """Name of the method that the tensors belong to."""
    form = _form(tensors)
    name = form[0] if form else "unknown"
    if not tensors.decomposed:
        return name
    return "DoRA" if name == "LoRA" else f"{name} with DoRA"


def to_loras(weights: Sequence[Tensor], tensors: LayerTensors, swapped: bool = False) -> list[Factors]:
    """The change of a layer's weight as (up, down) in float32, split among the layers with these weights.

    ``swapped``: the halves of the outputs are in the other order (see ``layer_index.Place``). Raises LayerTensorsError.
    """
    if len(weights) == 1 and not swapped:
        return [to_lora(weights[0], tensors)]
    weight = torch.cat(list(weights))
    up, down = to_lora(swap_halves(weight) if swapped else weight, tensors)
    ups = (swap_halves(up) if swapped else up).split([len(weight) for weight in weights])
    return [_without_zeros(up, down, weight) for up, weight in zip(ups, weights, strict=True)]


def to_lora(weight: Tensor, tensors: LayerTensors) -> Factors:
    """The change of a layer's weight as (up, down) in float32.

    Raises LayerTensorsError if the tensors are inconsistent or don't fit the weight.
    """
    if (form := _form(tensors)) is None:
        raise LayerTensorsError(
            f"its up and down are missing, there is only {', '.join(tensors.by_part)}; get the file again"
        )
    if empty := [part for part, tensor in tensors.by_part.items() if not tensor.numel()]:
        raise LayerTensorsError(f"its {empty[0]} is empty; get the file again")
    _check_settings(form[0], tensors)
    try:
        up, down = form[1](weight, tensors)
        check_shape(weight, len(up), down.shape[1])
        if up.shape[1] != len(down):
            raise LayerTensorsError(f"its factors have ranks {up.shape[1]} and {len(down)}; get the file again")
        if tensors.decomposed:
            up, down = _apply_magnitudes(weight, up, down, tensors)
    except (RuntimeError, IndexError) as error:  # raised by torch for shapes that don't match
        raise LayerTensorsError(
            f"its tensors don't fit each other ({str(error).splitlines()[0]}); get the file again"
        ) from None
    if not (up.isfinite().all() and down.isfinite().all()):
        raise LayerTensorsError("its tensors give a weight that is not finite; get the file again")
    return _of_least_rank(up, down, weight)


def _of_least_rank(up: Tensor, down: Tensor, weight: Tensor) -> Factors:
    if up.shape[1] > min(matrix_shape(weight)):
        up, down = full_rank_factors(up @ down)
    return up.float().contiguous(), down.float().contiguous()


def _without_zeros(up: Tensor, down: Tensor, weight: Tensor) -> Factors:
    """The factors without columns that are zero in this part of a layer, as files with a LoRA for each part have."""
    used = up.any(dim=0)
    used[0] |= not used.any()  # of rank 1 at least
    return _of_least_rank(up[:, used], down[used], weight)


def _check_settings(kind: str, tensors: LayerTensors) -> None:
    """Raise LayerTensorsError if the settings are of another method than the tensors."""
    if tensors.settings is None:
        return
    if kind != METHODS[tensors.settings.peft_type]:
        raise LayerTensorsError(f"its settings say peft_type = {tensors.settings.peft_type}, its tensors are {kind}")
    if tensors.settings.use_dora != tensors.decomposed:
        there = "there are" if tensors.decomposed else "there are no"
        raise LayerTensorsError(f"its settings say use_dora = {tensors.settings.use_dora}, but {there} magnitudes")


def _apply_magnitudes(weight: Tensor, up: Tensor, down: Tensor, tensors: LayerTensors) -> Factors:
    """DoRA: rescale each output of W + up · down (in LyCORIS' older files each input) to its magnitude."""
    matrix = in_float64(weight).flatten(1)
    changed = matrix + up @ down
    sizes = tensors.get("magnitude" if tensors.has("magnitude") else "dora_scale")
    if tensors.has("dora_scale") and sizes.shape[:1] == (1,) and len(matrix) != 1:  # (1, d_in, 1, 1): a norm per input
        shaped = changed.reshape(weight.shape)
        norms = shaped.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (weight.ndim - 2))
        return full_rank_factors((shaped * (sizes.reshape(norms.shape) / norms)).flatten(1) - matrix)
    if sizes.numel() != len(matrix):
        raise LayerTensorsError(f"{sizes.numel()} magnitudes for {len(matrix)} outputs; get the file again")
    return full_rank_factors(changed * (sizes.flatten() / changed.norm(dim=1))[:, None] - matrix)
