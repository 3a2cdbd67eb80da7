"""One layer of another program's adapter file -> the factors of a plain LoRA, exactly. The layer's own weight is needed
where the change depends on it.

Sources of the forms: LoRA (arXiv 2106.09685), DoRA (2402.09353), PiSSA (2404.02948), OLoRA (2406.01775), LoHa
(2108.06098), LoKr, GLoRA and the tensors' names (LyCORIS, 2309.14859), OFT (2306.07280), BOFT (2311.06243), (IA)³
(2205.05638), HRA (2405.17484) as PEFT and LyCORIS store them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hra_diffusion.adapters import householder
from hra_diffusion.adapters.layer import original_weight
from hra_diffusion.errors import UserError
from hra_diffusion.interop.peft_settings import LINEAR_STARTS, METHODS, RESIDUAL_STARTS, PeftSettings

Factors = tuple[Tensor, Tensor]
"""(up (d_out, k), down (k, d_in)); convolutions flattened to (c_out, c_in·k·k)."""


class PartsError(UserError):
    """A layer's tensors don't make sense together: what is missing or does not fit."""


@dataclass(frozen=True)
class LayerParts:
    """The tensors of one layer by part ("down", "up", "alpha", "hada_w1_a", …), and PEFT's settings for it if any."""

    tensors: dict[str, Tensor]
    settings: PeftSettings | None = None

    def get(self, part: str) -> Tensor:
        """A part in float64. Raises PartsError if it is missing."""
        if part not in self.tensors:
            raise PartsError(f"{part} is missing; the file is not whole, get it again")
        return self.tensors[part].double()

    def has(self, prefix: str) -> bool:
        """Whether any part begins so."""
        return any(part.startswith(prefix) for part in self.tensors)

    @property
    def form(self) -> tuple[str, Callable[[Tensor, "LayerParts"], Factors]] | None:
        """The kind of the tensors and how they are read, or None where no part tells."""
        return next((form for prefix, form in FORMS.items() if self.has(prefix)), None)

    @property
    def decomposed(self) -> bool:
        """Whether the tensors are DoRA's."""
        return self.has("magnitude") or self.has("dora_scale")


def kind(parts: LayerParts) -> str:
    """The name of the layer's method."""
    name = parts.form[0] if parts.form else "unknown"
    if not parts.decomposed:
        return name
    return "DoRA" if name == "LoRA" else f"{name} with DoRA"


def to_lora(layer: nn.Module, parts: LayerParts) -> Factors:
    """The layer's change as (up, down), float32. Raises PartsError for what does not fit together or not the layer."""
    weight = original_weight(layer).detach()
    if parts.form is None:
        raise PartsError(f"its up and down are missing, there is only {', '.join(parts.tensors)}; get the file again")
    if empty := [part for part, tensor in parts.tensors.items() if not tensor.numel()]:
        raise PartsError(f"its {empty[0]} is empty; get the file again")
    _check_method(parts)
    try:
        up, down = _fitting(parts.form[1](weight, parts), weight)
        if parts.decomposed:
            up, down = _decomposed(weight, up, down, parts)
    except (RuntimeError, IndexError) as error:  # torch's words for shapes that don't multiply
        raise PartsError(
            f"its tensors don't fit each other ({str(error).splitlines()[0]}); get the file again"
        ) from None
    if not (up.isfinite().all() and down.isfinite().all()):
        raise PartsError("its tensors give no finite weight; get the file again")
    if up.shape[1] > min(weight.flatten(1).shape):
        up, down = _dense(up @ down)
    return up.float().contiguous(), down.float().contiguous()


def _check_method(parts: LayerParts) -> None:
    """Raises PartsError for settings of another method than the tensors'."""
    if parts.settings is None or parts.form is None:
        return
    if parts.form[0] != METHODS[parts.settings.peft_type]:
        raise PartsError(f"its settings say peft_type = {parts.settings.peft_type}, its tensors are {parts.form[0]}")
    if parts.settings.use_dora != parts.decomposed:
        there = "there are" if parts.decomposed else "there are no"
        raise PartsError(f"its settings say use_dora = {parts.settings.use_dora}, but {there} magnitudes")


def _disagreement(name: str, said: object, found: object) -> PartsError:
    """For tensors that are not of the form that PEFT gives them with these settings."""
    return PartsError(f"its settings say {name} = {said}, its tensors {found}; get the folder again")


def _check_rank(parts: LayerParts, rank: int) -> None:
    """Raises PartsError for settings of another rank than the tensors'."""
    if parts.settings is not None and parts.settings.r not in (None, rank):
        raise _disagreement("r (or rank_pattern)", parts.settings.r, rank)


def _values(weight: Tensor) -> Tensor:
    """The layer's weight for a form that needs it; others are read without, for a base of shapes alone."""
    return weight.cpu().double()


def _fitting(factors: Factors, weight: Tensor) -> Factors:
    """The factors, if they are of the weight's shape."""
    shape, own = (len(factors[0]), factors[1].shape[1]), tuple(weight.flatten(1).shape)
    if shape != own:
        raise PartsError(f"the file has {shape}, this base {own}: it is for another base")
    return factors


def _lora(weight: Tensor, parts: LayerParts) -> Factors:
    up, down = parts.get("up"), parts.get("down")
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[1] != _rank_of(down, parts):
        raise PartsError(f"up {tuple(up.shape)} and down {tuple(down.shape)} are not of one rank; get the file again")
    if "mid" in parts.tensors:  # a convolution in three steps: 1×1, k×k, 1×1
        down = torch.einsum("ijkl,jc->ickl", parts.get("mid"), down.flatten(1))
    scale = _scale(parts, up.shape[1])
    up, down = scale * up.flatten(1), down.flatten(1)
    start = str(parts.settings.init_lora_weights).lower() if parts.settings else ""
    if weight.ndim == 4 and start in LINEAR_STARTS:
        raise PartsError(f"its settings say init_lora_weights = {start}, which PEFT has for linear layers only")
    if start not in RESIDUAL_STARTS:
        return up, down
    start_up, start_down = _start(weight, start, up.shape[1], scale)
    return torch.cat([up, -start_up], dim=1), torch.cat([down, start_down])


def _rank_of(down: Tensor, parts: LayerParts) -> int:
    return parts.get("mid").shape[0] if "mid" in parts.tensors else down.shape[0]


def _start(weight: Tensor, name: str, rank: int, scale: float) -> Factors:
    """What PiSSA or OLoRA took out of the base, computed again from it, as PEFT does when it loads such a folder."""
    if name == "pissa":
        left, values, right = torch.linalg.svd(_values(weight), full_matrices=False)
        return left[:, :rank] * values[:rank], right[:rank]
    q, r = torch.linalg.qr(_values(weight))
    return scale * q[:, :rank], r[:rank]


def _loha(weight: Tensor, parts: LayerParts) -> Factors:
    """(w1a w1b) ∘ (w2a w2b): the row-wise and column-wise Kronecker products of the factors."""
    scale = _scale(parts, parts.get("hada_w1_b").shape[0])
    _check_tucker(weight, parts, parts.has("hada_t"))
    if parts.has("hada_t"):
        first, second = (_tucker(parts, f"hada_t{i}", f"hada_w{i}_a", f"hada_w{i}_b") for i in (1, 2))
        return _dense(scale * first * second)
    first, second = parts.get("hada_w1_a"), parts.get("hada_w2_a")
    up = torch.einsum("oi,oj->oij", first, second).flatten(1)
    down = torch.einsum("ic,jc->ijc", parts.get("hada_w1_b"), parts.get("hada_w2_b")).flatten(0, 1)
    return scale * up, down


def _check_tucker(weight: Tensor, parts: LayerParts, tucker: bool) -> None:
    """Raises PartsError where PEFT's settings would have the other form for a convolution."""
    if parts.settings is None or weight.ndim == 2 or weight.shape[2:] == (1, 1):
        return
    if parts.settings.use_effective_conv2d != tucker:
        raise _disagreement("use_effective_conv2d", not tucker, tucker)


def _lokr(weight: Tensor, parts: LayerParts) -> Factors:
    """w1 ⊗ w2, either of them whole or in factors; ``(L₁R₁) ⊗ (L₂R₂) = (L₁ ⊗ L₂)(R₁ ⊗ R₂)``."""
    ranks = [parts.get(f"lokr_w{i}_b").shape[0] for i in (1, 2) if f"lokr_w{i}_b" in parts.tensors]
    (up1, down1), (up2, down2) = _half(parts, 1), _half(parts, 2)
    if parts.settings is not None and parts.settings.r:
        _check_lokr(weight, parts, parts.settings, (len(up1), down1.shape[1]))
        scale = _scale(parts, ranks[0] if ranks else parts.settings.r)  # PEFT scales whole factors too
    else:
        scale = _scale(parts, ranks[0]) if ranks else 1.0
    return scale * torch.kron(up1, up2), torch.kron(down1, down2)


def _check_lokr(weight: Tensor, parts: LayerParts, settings: PeftSettings, first: tuple[int, int]) -> None:
    """Raises PartsError where PEFT would make other factors from the settings than there are (``LoKrLayer``).
    ``first``: the shape of the first factor."""
    wanted = tuple(_first_factor(size, settings.decompose_factor) for size in weight.shape[:2])
    if first != wanted:
        raise _disagreement("decompose_factor", settings.decompose_factor, f"{first}, not {wanted}")
    rank, second = settings.r or 1, max(weight.shape[0] // first[0], weight.shape[1] // first[1])
    if (settings.decompose_both and rank < max(first) / 2) != ("lokr_w1_a" in parts.tensors):
        raise _disagreement("decompose_both", settings.decompose_both, not settings.decompose_both)
    if (rank < second / 2) != ("lokr_w2_a" in parts.tensors):
        raise _disagreement("r", rank, "another, by their second factor")
    if "lokr_w2_a" in parts.tensors:
        _check_tucker(weight, parts, "lokr_t2" in parts.tensors)


def _first_factor(size: int, factor: int) -> int:
    """The first of the two numbers that PEFT splits a dimension into."""
    if factor > 0 and size % factor == 0:
        return factor
    divisors = (d for d in range(1, math.isqrt(size) + 1) if size % d == 0 and (factor == -1 or d <= factor))
    return max(divisors, default=1)


def _half(parts: LayerParts, number: int) -> Factors:
    whole, left, right = (f"lokr_w{number}{end}" for end in ("", "_a", "_b"))
    if whole in parts.tensors:
        return _dense(parts.get(whole).flatten(1))
    if number == 2 and "lokr_t2" in parts.tensors:
        return _dense(_tucker(parts, "lokr_t2", left, right))
    return parts.get(left), parts.get(right).flatten(1)


def _tucker(parts: LayerParts, core: str, left: str, right: str) -> Tensor:
    """A convolution's change (c_out, c_in·k·k) from LyCORIS' Tucker form."""
    return torch.einsum("ijkl,jr,ip->prkl", parts.get(core), parts.get(right), parts.get(left)).flatten(1).contiguous()


def _full(weight: Tensor, parts: LayerParts) -> Factors:
    return _dense(parts.get("diff").flatten(1))


def _hra(weight: Tensor, parts: LayerParts) -> Factors:
    """``W H₁…H_r − W`` as factors; any number of reflections."""
    u = parts.get("hra_u")
    _check_rank(parts, u.shape[1])
    orthonormal = parts.settings is not None and parts.settings.apply_GS
    chain = householder.gram_schmidt_chain if orthonormal else householder.reflection_chain
    up, down = householder.low_rank_factors(*chain(u))
    return _values(weight).flatten(1) @ up, down


def _oft(weight: Tensor, parts: LayerParts) -> Factors:
    """``W Rᵀ − W``, R block-diagonal, each block a Cayley transform of a skew-symmetric matrix.

    PEFT's OFT, and OneTrainer's, whose files have no settings and may be scaled (``modules/module/LoRAModule.py`` and
    ``oft_utils.py`` at 23df3832).
    """
    settings, matrix = parts.settings or PeftSettings(peft_type="OFT"), _values(weight).flatten(1)
    skew = _skew(parts.get("oft_R"))
    number, size = skew.shape[:2]
    count = matrix.shape[1] // size
    if matrix.shape[1] % size or number not in (1, count):
        raise PartsError(f"{number} blocks of {size} don't make {matrix.shape[1]} inputs: it is for another base")
    _check_oft(parts, matrix.shape[1], number, size)
    if "scaled_oft" in parts.tensors:
        skew = skew / (2 * math.sqrt(size - 1))
    if settings.coft:
        norms = skew.norm(dim=(1, 2), keepdim=True)
        skew = skew * (settings.eps / math.sqrt(number) / norms.clamp(min=1e-30)).clamp(max=1)
    rotations = _cayley(skew, settings).expand(count, -1, -1)
    if parts.settings is not None or weight.ndim == 2:  # OneTrainer multiplies a convolution's weight by R, not by Rᵀ
        rotations = rotations.mT
    turned = torch.einsum("onb,nbc->onc", matrix.unflatten(1, (-1, size)), rotations)
    return _dense(turned.flatten(1) - matrix)


def _check_oft(parts: LayerParts, inputs: int, number: int, size: int) -> None:
    """Raises PartsError where PEFT would make other blocks than there are from the settings (``OFTLayer``)."""
    if (settings := parts.settings) is None:
        return
    if bool(settings.r) == bool(settings.oft_block_size):
        raise PartsError(f"its settings say r = {settings.r} and oft_block_size = {settings.oft_block_size}")
    for name, said, found in (("r", settings.r, inputs // size), ("oft_block_size", settings.oft_block_size, size)):
        if said and _divisor_near(inputs, said) != found:
            raise _disagreement(name, said, found)
    if number != (1 if settings.block_share else inputs // size):
        raise _disagreement("block_share", settings.block_share, not settings.block_share)


def _divisor_near(size: int, wanted: int) -> int:
    """The divisor of ``size`` that PEFT takes for one wanted: the nearest, the lower of two."""
    if wanted >= size:
        return size
    return min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: (abs(d - wanted), d))


def _skew(vectors: Tensor) -> Tensor:
    """Skew-symmetric blocks (n, b, b) from their upper triangles (n, b(b−1)/2)."""
    size = (1 + math.isqrt(1 + 8 * vectors.shape[1])) // 2
    skew = torch.zeros(len(vectors), size, size, dtype=vectors.dtype)
    rows, columns = torch.triu_indices(size, size, 1)
    skew[:, rows, columns] = vectors
    return skew - skew.mT


def _cayley(skew: Tensor, settings: PeftSettings) -> Tensor:
    """Blocks (n, b, b) of PEFT's OFT: ``(I − S)(I + S)⁻¹``, or PEFT's truncated series of it, which is its default."""
    identity = torch.eye(skew.shape[1], dtype=skew.dtype)
    if not settings.use_cayley_neumann:
        return torch.linalg.solve(identity + skew, identity - skew, left=False)
    terms = settings.num_cayley_neumann_terms
    terms = 4 if terms == 3 else terms  # as PEFT computes it
    result, power = identity.repeat(len(skew), 1, 1), identity
    for number in range(1, terms):
        power = power @ skew
        result = result + (1 if number == terms - 1 and number > 2 else 2) * power
    return result


def _rotated_outputs(weight: Tensor, parts: LayerParts) -> Factors:
    """LyCORIS' diag-OFT and kohya's OFT (blocks (n, b, b)) or LyCORIS' BOFT (stages (m, n, b, b)): outputs turned, then
    rescaled."""
    matrix, blocks = _values(weight).flatten(1), parts.get("oft_blocks")
    if blocks.ndim not in (3, 4):
        raise PartsError(f"oft_blocks are {tuple(blocks.shape)}, not blocks of one or more stages; get the file again")
    skew = blocks - blocks.mT
    limit = parts.tensors["alpha"].item() * len(matrix) if "alpha" in parts.tensors else 0
    if limit > 0:
        skew = skew * min(1, limit / (skew.norm().item() + 1e-8))
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype)
    rotations = torch.linalg.solve(identity - skew, identity + skew, left=False)
    turned = _butterfly(rotations, matrix) if blocks.ndim == 4 else _in_blocks(rotations.mT, matrix)
    if "rescale" in parts.tensors:
        turned = parts.get("rescale").reshape(-1, 1) * turned
    return _dense(turned - matrix)


def _in_blocks(rotations: Tensor, rows: Tensor) -> Tensor:
    """Each block of rows times its matrix: rotations (n, b, b), rows (n·b, d)."""
    return torch.einsum("nij,njd->nid", rotations, rows.unflatten(0, (-1, rotations.shape[-1]))).flatten(0, 1)


def _butterfly(stages: Tensor, rows: Tensor) -> Tensor:
    """Stage i turns blocks of rows that lie 2^i·b/2 apart: stages (m, n, b, b), rows (n·b, d)."""
    for number, rotations in enumerate(stages):
        stride = 2**number * rotations.shape[-1] // 2
        paired = rows.unflatten(0, (-1, 2, stride)).transpose(1, 2).flatten(0, 2)
        rows = _in_blocks(rotations, paired).unflatten(0, (-1, stride, 2)).transpose(1, 2).flatten(0, 2)
    return rows


def _glora(weight: Tensor, parts: LayerParts) -> Factors:
    """``γ (W A + B)``, A and B of low rank, γ = alpha / rank; A acts on a convolution's channels."""
    a1, a2, b1, b2 = (parts.get(part).flatten(1) for part in ("glora_a1", "glora_a2", "glora_b1", "glora_b2"))
    scale = _scale(parts, len(a2))
    if "glora_bm" in parts.tensors:
        b2 = torch.einsum("mn...,nj->mj...", parts.get("glora_bm"), b2).flatten(1)
    weight = _values(weight)
    if weight.ndim == 2:
        return scale * torch.cat([weight @ a1, b1], dim=1), torch.cat([a2, b2])
    mixed = torch.einsum("oi...,ij->oj...", weight, a1 @ a2)
    return _dense(scale * (mixed.flatten(1) + b1 @ b2))


def _ia3(weight: Tensor, parts: LayerParts) -> Factors:
    """``W diag(w)`` for an input's scales, ``diag(w) W`` for an output's."""
    scales = parts.get("ia3").flatten()
    shape = (1, -1) if parts.tensors["on_input"].item() else (-1, 1)
    return _dense((_values(weight) * scales.reshape(*shape, *[1] * (weight.ndim - 2))).flatten(1))


FORMS = {
    "hada_": ("LoHa", _loha),
    "lokr_": ("LoKr", _lokr),
    "diff": ("full difference", _full),
    "hra_u": ("HRA", _hra),
    "oft_R": ("OFT", _oft),
    "oft_blocks": ("diag-OFT or BOFT", _rotated_outputs),
    "glora_": ("GLoRA", _glora),
    "ia3": ("IA³", _ia3),
    "down": ("LoRA", _lora),
    "up": ("LoRA", _lora),
}
"""How a layer is read, by a part that it has: its name and its factors."""


def _scale(parts: LayerParts, rank: int) -> float:
    """alpha / rank: alpha from the file, from PEFT's settings, else the rank."""
    if "alpha" in parts.tensors:
        return (parts.tensors["alpha"].item() or rank) / rank  # LyCORIS and kohya write 0 for "the rank"
    if parts.settings is None:
        return 1.0
    _check_rank(parts, rank)
    return parts.settings.alpha / (rank**0.5 if parts.settings.use_rslora else rank)


def _decomposed(weight: Tensor, up: Tensor, down: Tensor, parts: LayerParts) -> Factors:
    """DoRA: W plus the change, each output (or, in LyCORIS' older files, each input) brought to its magnitude."""
    matrix = _values(weight).flatten(1)
    changed = matrix + up @ down
    sizes = parts.get("magnitude" if parts.has("magnitude") else "dora_scale")
    if parts.has("dora_scale") and len(sizes) == 1 and len(matrix) != 1:  # (1, inputs, 1, 1): a norm for each input
        shaped = changed.reshape(weight.shape)
        norms = shaped.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (weight.ndim - 2))
        return _dense((shaped * (sizes.reshape(norms.shape) / norms)).flatten(1) - matrix)
    if sizes.numel() != len(matrix):
        raise PartsError(f"{sizes.numel()} magnitudes for {len(matrix)} outputs; get the file again")
    return _dense(changed * (sizes.flatten() / changed.norm(dim=1))[:, None] - matrix)


def _dense(change: Tensor) -> Factors:
    """Any matrix as (up, down) of full rank: itself and the identity on its shorter side."""
    d_out, d_in = change.shape
    if d_in <= d_out:
        return change, torch.eye(d_in, dtype=change.dtype)
    return torch.eye(d_out, dtype=change.dtype), change
