"""BOFT against PEFT's."""

import pytest
import torch
from peft import BOFTConfig
from peft.tuners.boft import layer as peft_boft
from peft_oracle import TARGETS, compare_outputs_and_gradients, pair

from hra_diffusion.adapters import attachment


class BlockDiagonal:
    """What PEFT's CUDA extension computes: (m, n, b, b) to (m, n b, n b)."""

    @staticmethod
    def apply(blocks):
        return torch.stack([torch.block_diag(*stage) for stage in blocks])


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_boft_equals_pefts(monkeypatch, stages):
    """Without its CUDA extension PEFT has one stage only, so the test stands in for the extension."""
    monkeypatch.setattr(peft_boft, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(peft_boft, "FastBlockDiag", BlockDiagonal)
    config = BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=stages, target_modules=TARGETS)
    ours, theirs = pair(config, "boft", {"rank": 4, "stages": stages})
    counterparts = {}
    for path, adapter in attachment.adapter_layers(ours, "a").items():
        layer = theirs.get_submodule(path)
        counterparts[adapter.rotations] = (layer.boft_R["default"], False)
        counterparts[adapter.scale] = (layer.boft_s["default"], False)
    compare_outputs_and_gradients(ours, theirs, counterparts)
