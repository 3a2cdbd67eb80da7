"""The layers of one adapter, or of several as one, as factors of a LoRA or a DoRA, ready to be written to a file.

Every method is exported as ``diag(scale) (W + up · down)``. Without a scale this is exactly a LoRA, with one a DoRA of
magnitude ``scale · ‖W + up · down‖`` per output. The factors of orthogonal methods depend on W, so the file is exact
for this base model only.
"""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment, registry
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.adapters.factors import MIN_SCALE, LayerFactors, LowRank, adapted_weight, compose
from hra_diffusion.adapters.fusion import factors_of
from hra_diffusion.adapters.layer import original_weight
from hra_diffusion.adapters.linear_map import matrix_shape
from hra_diffusion.adapters.quantization import Quantised
from hra_diffusion.adapters.state import Fusion
from hra_diffusion.adapters.targets import target_layer
from hra_diffusion.errors import UserError
from hra_diffusion.interop.transformer_keys import OriginalLayer, swap_halves

ROUNDING = 1e-6
"""Relative error below which a LoRA counts as exact: float32 rounding."""


class ExportError(UserError):
    """An adapter can't be exported in this form."""


@dataclass(frozen=True)
class ExportLayer:
    """Factors of one adapted layer in float32. All layers have the same rank r.

    ``up`` (d_out, r) and ``down`` (r, d_in), for a convolution (c_out, r, 1, 1) and (r, c_in, k, k). ``magnitude``
    (d_out,), or None for a LoRA: DoRA's norm of each output's weight.
    """

    component: str
    path: str
    up: Tensor
    down: Tensor
    magnitude: Tensor | None


@dataclass(frozen=True)
class ExportJob:
    """Adapters on a pipeline with their strengths, and the options of their export as one."""

    pipe: DiffusionPipeline
    strengths: Mapping[str, float]
    fusion: Fusion
    lora_rank: int | None
    info: AdapterInfo | None
    sample: Path | None
    bundle_embeddings: bool = False

    @functools.cached_property
    def components(self) -> dict[str, nn.Module]:
        """The pipeline's components with layers that have an adapter."""
        models = pipeline.components(self.pipe)
        adapted = {component for name in self.strengths for component in attachment.layers_by_component(models, name)}
        return {component: model for component, model in models.items() if component in adapted}

    @functools.cached_property
    def adapters(self) -> dict[tuple[str, str], list[tuple[registry.Adapter, float]]]:
        """The adapters with their strengths, in order, by (component, layer path)."""
        found: dict[tuple[str, str], list[tuple[registry.Adapter, float]]] = {}
        for name, strength in self.strengths.items():
            for component, layers in attachment.layers_by_component(self.components, name).items():
                for path, adapter in layers.items():
                    found.setdefault((component, path), []).append((adapter, strength))
        return found

    @property
    def name(self) -> str:
        """The adapters' names, joined."""
        return "+".join(self.strengths)

    @property
    def title(self) -> str:
        """The adapters' methods, joined."""
        methods = dict.fromkeys(adapter.method for adapters in self.adapters.values() for adapter, _ in adapters)
        return " + ".join(registry.get_method(method).title for method in methods)

    @property
    def configs(self) -> list[registry.MethodConfig]:
        """The different configurations of the layers. Imported adapters may have a rank per layer."""
        return list(dict.fromkeys(adapter.config for adapters in self.adapters.values() for adapter, _ in adapters))

    @property
    def native_peft(self) -> registry.PeftForm | None:
        """PEFT's form of the method, if it can hold one adapter as it is: at strength 1, with all its parameters."""
        first = next(iter(self.adapters.values()))[0][0]
        form = registry.get_method(first.method).peft
        if form is None or [*self.strengths.values()] != [1] or self.lora_rank is not None or len(self.configs) > 1:
            return None
        layers = (target_layer(self.components[component], path) for component, path in self.adapters)
        whole = {name for name, _ in first.named_parameters()} == set(form.parameters)
        return form if whole and not (form.linear_only and any(isinstance(x, nn.Conv2d) for x in layers)) else None

    def layers(self) -> tuple[list[ExportLayer], float]:
        """The factors of all layers, and the relative error of their truncation to ``lora_rank``."""
        if self.lora_rank is None:
            updates, error = {layer: self._update(*layer) for layer in self.adapters}, 0.0
        else:
            truncated = {layer: _truncate(self._delta(*layer), self.lora_rank) for layer in self.adapters}
            updates = {layer: update for layer, (update, *_) in truncated.items()}
            lost, total = (sum(norms) for norms in zip(*(norms for _, *norms in truncated.values()), strict=True))
            error = (lost / total) ** 0.5 if total else 0.0
        rank = max(update.up.shape[1] for update in updates.values())
        layers = [self._export_layer(component, path, update, rank) for (component, path), update in updates.items()]
        return layers, error if error > ROUNDING else 0.0

    def as_one(self, component: str, original: OriginalLayer, parts: Sequence[ExportLayer | None]) -> ExportLayer:
        """The layers among which an original layer is split as one; None stands for a layer without an adapter."""
        if len(parts) == 1 and not original.swapped:
            return cast(ExportLayer, parts[0])
        model, magnitude = self.components[component], None
        sizes = [matrix_shape(target_layer(model, path))[0] for path in original.paths]
        up = torch.block_diag(
            *(part.up if part else torch.zeros(size, 0) for part, size in zip(parts, sizes, strict=True))
        )
        if any(part and part.magnitude is not None for part in parts):
            pairs = zip(original.paths, parts, strict=True)
            magnitude = torch.cat([self._magnitude(component, path, part) for path, part in pairs])
        if original.swapped:
            up, magnitude = swap_halves(up), None if magnitude is None else swap_halves(magnitude)
        down = torch.cat([part.down for part in parts if part])
        return ExportLayer(component, original.name, up, down, magnitude)

    def _magnitude(self, component: str, path: str, layer: ExportLayer | None) -> Tensor:
        """The norm of each output's weight of a layer as a DoRA."""
        if layer and layer.magnitude is not None:
            return layer.magnitude
        change = layer.up.double() @ layer.down.double() if layer else 0
        return (self._weight(component, path) + change).norm(dim=1).float()

    @torch.no_grad()
    def _factors(self, component: str, path: str, weight: Tensor) -> list[LayerFactors]:
        """The factors of one layer, on the CPU."""
        adapters = [(copy.deepcopy(adapter).cpu(), strength) for adapter, strength in self.adapters[component, path]]
        return factors_of(adapters, weight, self.fusion)

    @torch.no_grad()
    def _update(self, component: str, path: str) -> LowRank:
        """The update of one layer in float64."""
        weight = self._weight(component, path)
        return compose(weight, self._factors(component, path, weight))

    @torch.no_grad()
    def _delta(self, component: str, path: str) -> Tensor:
        """W′ − W of one layer in float64."""
        weight = self._weight(component, path)
        return functools.reduce(adapted_weight, self._factors(component, path, weight), weight) - weight

    def _weight(self, component: str, path: str) -> Tensor:
        """The base weight of one layer in float64. Raises ExportError if a rotation needs a quantised weight."""
        layer = target_layer(self.components[component], path)
        for adapter, _ in self.adapters[component, path] if isinstance(layer, Quantised) else ():
            factors = adapter.own_factors()
            used = (factors.right, factors.left, factors.blocks, factors.magnitude)
            if any(part is not None for part in used):
                title = registry.get_method(adapter.method).title
                raise ExportError(f"{title} multiplies the base's weights, and this base's are stored as "
                                  f"{layer.kind}; load the base in full precision to export for it")  # fmt: skip
        return original_weight(layer).detach().flatten(1).cpu().double()

    def _export_layer(self, component: str, path: str, update: LowRank, rank: int) -> ExportLayer:
        magnitude = None
        if update.scale is not None:
            magnitude = (update.scale * (self._weight(component, path) + update.up @ update.down).norm(dim=1)).float()
        up, down = _pad(update, rank)
        layer = target_layer(self.components[component], path)
        if isinstance(layer, nn.Conv2d):
            up, down = up[..., None, None], down.unflatten(1, (layer.in_channels, *layer.kernel_size))
        zero_output = update.scale is not None and bool((update.scale.abs() <= 3 * MIN_SCALE).any())
        if zero_output or not all(
            t.isfinite().all() for t in (up, down, update.up if magnitude is None else magnitude)
        ):
            raise ExportError(f"{component}.{path} can't be written as a DoRA: an output has magnitude 0; "
                              "export a plain LoRA with --lora-rank, or --format merged")  # fmt: skip
        return ExportLayer(component, path, up, down, magnitude)


def _truncate(delta: Tensor, rank: int) -> tuple[LowRank, float, float]:
    """The best LoRA of this rank for ``delta``, and the squared norms of what is lost and of ``delta``."""
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    root = S[:rank].sqrt()
    lost, total = S[rank:].square().sum(), S.square().sum()
    return LowRank(U[:, :rank] * root, root[:, None] * Vh[:rank]), float(lost), float(total)


def _pad(update: LowRank, rank: int) -> tuple[Tensor, Tensor]:
    """(up, down) padded with zeros to ``rank``, because many loaders read mixed ranks wrongly."""
    missing = rank - update.up.shape[1]
    up = nn.functional.pad(update.up, (0, missing))
    return up.float(), nn.functional.pad(update.down, (0, 0, 0, missing)).float()
