"""One layer of a stranger's file -> the factors of a plain LoRA, exactly. The layer's own weight is needed where the
change depends on it.

Sources of the forms: LoRA (arXiv 2106.09685), DoRA (2402.09353), LoHa (2108.06098), LoKr and the tensors' names
(LyCORIS, 2309.14859), OFT (2306.07280) and HRA (2405.17484) as PEFT stores them.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from hra_diffusion import householder
from hra_diffusion.errors import UserError
from hra_diffusion.layer import original_weight

Factors = tuple[Tensor, Tensor]
"""(up (d_out, k), down (k, d_in)); convolutions flattened to (c_out, c_in·k·k)."""


class PartsError(UserError):
    """A layer's tensors don't make sense together: what is missing or does not fit."""


class PeftSettings(BaseModel):
    """What counts of PEFT's own settings (adapter_config.json); defaults are PEFT's."""

    model_config = ConfigDict(extra="ignore")

    peft_type: str = ""
    r: int | None = None
    lora_alpha: float | None = None
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    use_rslora: bool = False
    apply_GS: bool = False  # noqa: N815 (PEFT's name)
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = Field(default=5, ge=1, le=100)

    @field_validator("alpha_pattern")
    @classmethod
    def _check_patterns(cls, patterns: dict[str, float]) -> dict[str, float]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no pattern: {error}") from None
        return patterns


@dataclass(frozen=True)
class LayerParts:
    """The tensors of one layer by part ("down", "up", "alpha", "hada_w1_a", …), and PEFT's settings if any."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]

    def get(self, part: str) -> Tensor:
        """A part in float64. Raises PartsError if it is missing."""
        if part not in self.tensors:
            raise PartsError(f"{part} is missing; the file is not whole, get it again")
        return self.tensors[part].double()

    def has(self, prefix: str) -> bool:
        """Whether any part begins so."""
        return any(part.startswith(prefix) for part in self.tensors)


def kind(parts: LayerParts) -> str:
    """What the layer is called among people."""
    name = next((name for prefix, (name, _) in FORMS.items() if parts.has(prefix)), "unknown")
    if not (parts.has("magnitude") or parts.has("dora_scale")):
        return name
    return "DoRA" if name == "LoRA" else f"{name} with DoRA"


def factors(layer: nn.Module, path: str, parts: LayerParts) -> Factors:
    """The layer's change as (up, down), float32. Raises PartsError for what does not fit together or not the layer."""
    weight = original_weight(layer).detach()
    form = next((form for prefix, (_, form) in FORMS.items() if parts.has(prefix)), None)
    if form is None:
        raise PartsError(f"its up and down are missing, there is only {', '.join(parts.tensors)}; get the file again")
    if empty := [part for part, tensor in parts.tensors.items() if not tensor.numel()]:
        raise PartsError(f"its {empty[0]} is empty; get the file again")
    try:
        up, down = _fitting(form(weight, path, parts), weight)
        if parts.has("magnitude") or parts.has("dora_scale"):
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


def _fitting(factors: Factors, weight: Tensor) -> Factors:
    """The factors, if they are of the weight's shape."""
    shape, own = (len(factors[0]), factors[1].shape[1]), tuple(weight.flatten(1).shape)
    if shape != own:
        raise PartsError(f"the file has {shape}, this base {own}: it is for another base")
    return factors


def _lora(weight: Tensor, path: str, parts: LayerParts) -> Factors:
    up, down = parts.get("up"), parts.get("down")
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[1] != _rank_of(down, parts):
        raise PartsError(f"up {tuple(up.shape)} and down {tuple(down.shape)} are not of one rank; get the file again")
    if "mid" in parts.tensors:  # a convolution in three steps: 1×1, k×k, 1×1
        down = torch.einsum("ijkl,jc->ickl", parts.get("mid"), down.flatten(1))
    return _scale(parts, path, up.shape[1]) * up.flatten(1), down.flatten(1)


def _rank_of(down: Tensor, parts: LayerParts) -> int:
    return parts.get("mid").shape[0] if "mid" in parts.tensors else down.shape[0]


def _loha(weight: Tensor, path: str, parts: LayerParts) -> Factors:
    """(w1a w1b) ∘ (w2a w2b): the row-wise and column-wise Kronecker products of the factors."""
    rank = parts.get("hada_w1_b").shape[0]
    scale = _scale(parts, path, rank)
    if parts.has("hada_t"):
        first, second = (_tucker(parts, f"hada_t{i}", f"hada_w{i}_a", f"hada_w{i}_b") for i in (1, 2))
        return _dense(scale * first * second)
    first, second = parts.get("hada_w1_a"), parts.get("hada_w2_a")
    up = torch.einsum("oi,oj->oij", first, second).flatten(1)
    down = torch.einsum("ic,jc->ijc", parts.get("hada_w1_b"), parts.get("hada_w2_b")).flatten(0, 1)
    return scale * up, down


def _lokr(weight: Tensor, path: str, parts: LayerParts) -> Factors:
    """w1 ⊗ w2, either of them whole or in factors; ``(L₁R₁) ⊗ (L₂R₂) = (L₁ ⊗ L₂)(R₁ ⊗ R₂)``."""
    ranks = [parts.get(f"lokr_w{i}_b").shape[0] for i in (1, 2) if f"lokr_w{i}_b" in parts.tensors]
    scale = _scale(parts, path, ranks[0]) if ranks else 1.0
    (up1, down1), (up2, down2) = _half(parts, 1), _half(parts, 2)
    return scale * torch.kron(up1, up2), torch.kron(down1, down2)


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


def _full(weight: Tensor, path: str, parts: LayerParts) -> Factors:
    return _dense(parts.get("diff").flatten(1))


def _hra(weight: Tensor, path: str, parts: LayerParts) -> Factors:
    """``W H₁…H_r − W`` as factors; any number of reflections."""
    u, matrix = parts.get("hra_u"), weight.flatten(1).cpu().double()
    chain = householder.gram_schmidt_chain if parts.settings.get("apply_GS") else householder.reflection_chain
    down, up = householder.applicable(*chain(u))
    return matrix @ up, down.mT


def _oft(weight: Tensor, path: str, parts: LayerParts) -> Factors:
    """``W R − W``, R block-diagonal, each block a Cayley transform of a skew-symmetric matrix."""
    blocks = _cayley(parts.get("oft_R"), PeftSettings().model_dump() | parts.settings)
    matrix = weight.flatten(1).cpu().double()
    size = blocks.shape[-1]
    if matrix.shape[1] % size or len(blocks) not in (1, matrix.shape[1] // size):
        raise PartsError(f"{len(blocks)} blocks of {size} don't make {matrix.shape[1]} inputs: it is for another base")
    turned = torch.einsum(
        "onb,ncb->onc", matrix.unflatten(1, (-1, size)), blocks.expand(matrix.shape[1] // size, -1, -1)
    )
    return _dense(turned.flatten(1) - matrix)


def _cayley(vectors: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Blocks (n, b, b) of PEFT's OFT from their upper triangles (n, b(b−1)/2): ``(I − S)(I + S)⁻¹``, or PEFT's
    truncated series of it, which is its default."""
    size = (1 + math.isqrt(1 + 8 * vectors.shape[1])) // 2
    skew = torch.zeros(len(vectors), size, size, dtype=vectors.dtype)
    rows, columns = torch.triu_indices(size, size, 1)
    skew[:, rows, columns] = vectors
    skew = skew - skew.mT
    identity = torch.eye(size, dtype=vectors.dtype)
    if not settings["use_cayley_neumann"]:
        return torch.linalg.solve(identity + skew, identity - skew, left=False)
    terms = settings["num_cayley_neumann_terms"]
    terms = 4 if terms == 3 else terms  # as PEFT computes it
    result, power = identity.repeat(len(skew), 1, 1), identity
    for number in range(1, terms):
        power = power @ skew
        result = result + (1 if number == terms - 1 and number > 2 else 2) * power
    return result


FORMS = {
    "hada_": ("LoHa", _loha),
    "lokr_": ("LoKr", _lokr),
    "diff": ("full difference", _full),
    "hra_u": ("HRA", _hra),
    "oft_R": ("OFT", _oft),
    "down": ("LoRA", _lora),
    "up": ("LoRA", _lora),
}
"""How a layer is read, by a part that it has: its name and its factors."""


def _scale(parts: LayerParts, path: str, rank: int) -> float:
    """alpha / rank: from the file, from PEFT's settings, else 1."""
    settings = parts.settings
    alpha = parts.tensors["alpha"].item() if "alpha" in parts.tensors else settings.get("lora_alpha")
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            alpha = value
    if not alpha:  # LyCORIS and kohya write 0 for "the rank"
        return 1.0
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _decomposed(weight: Tensor, up: Tensor, down: Tensor, parts: LayerParts) -> Factors:
    """DoRA: W plus the change, each output (or, in LyCORIS' older files, each input) brought to its magnitude."""
    matrix = weight.flatten(1).cpu().double()
    changed = matrix + up @ down
    sizes = parts.get("magnitude" if parts.has("magnitude") else "dora_scale")
    if parts.has("dora_scale") and len(sizes) == 1 != len(matrix):  # (1, inputs, 1, 1): a norm for each input
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
