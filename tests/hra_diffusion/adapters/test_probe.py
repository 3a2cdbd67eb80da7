"""The probe of a weight: its value, and the memory that it takes."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hra_diffusion.adapters.probe import CHUNK, probe


def recorded(weight: torch.Tensor) -> float:
    """The value that adapter files record: the whole pattern at once, in float64."""
    flat = weight.double().flatten()
    pattern = torch.cos(torch.arange(flat.numel(), dtype=torch.float64) * 2.399963) * 2**0.5
    return float(flat @ pattern / flat.norm())


@pytest.mark.parametrize("shape", [(1,), (320, 4, 3, 3), (77, 1000), (1280, 1281), (2, CHUNK)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_value_is_the_one_in_files_of_earlier_versions(shape, dtype):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert probe(weight) == pytest.approx(recorded(weight), abs=1.1e-6)


def test_a_non_contiguous_weight_and_one_of_zeros():
    weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(1))
    assert probe(weight.T) == pytest.approx(recorded(weight.T.contiguous()), abs=1.1e-6)
    assert math.isnan(probe(torch.zeros(3)))


def test_a_large_weight_needs_little_memory():
    class Largest(TorchDispatchMode):
        """Size in bytes of the largest tensor that an operation allocates."""

        bytes = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **kwargs or {})
            storage = output.untyped_storage() if isinstance(output, torch.Tensor) else None
            if storage is not None and storage.data_ptr() != weight.untyped_storage().data_ptr():
                self.bytes = max(self.bytes, storage.nbytes())
            return output

    for weight in (torch.ones(4096, 4096), torch.ones(4096, 4096, dtype=torch.bfloat16)):
        with Largest() as largest:
            probe(weight)
        assert 0 < largest.bytes <= 4 * CHUNK, weight.dtype
