"""OFT against PEFT's."""

import pytest
import torch
from conftest import tiny_unet
from peft import OFTConfig
from peft_oracle import TARGETS, compare_outputs_and_gradients, pair

from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.block_rotation import cayley, cayley_neumann, skew_blocks
from hra_diffusion.errors import UserError


@pytest.mark.parametrize("series", [False, True], ids=["exact", "series"])
def test_oft_equals_pefts(series):
    config = OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=series, target_modules=TARGETS)
    ours, theirs = pair(config, "oft", {"rank": 4, "cayley_neumann": series})
    counterparts = {
        adapter.skew: (theirs.get_submodule(path).oft_R["default"].weight, False)
        for path, adapter in attachment.adapter_layers(ours, "a").items()
    }
    compare_outputs_and_gradients(ours, theirs, counterparts)


def test_the_series_approximates_the_transform():
    skew = skew_blocks(0.05 * torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), 4)
    torch.testing.assert_close(cayley_neumann(-skew, 5), cayley(skew), atol=5e-4, rtol=0)
    torch.testing.assert_close(cayley(skew) @ cayley(skew).mT, torch.eye(4).expand(3, 4, 4), atol=1e-6, rtol=0)


def test_blocks_that_do_not_divide_a_layer_are_refused_with_its_name():
    unet = tiny_unet()
    with pytest.raises(UserError, match=r"attn1\.to_q: 32 inputs can't be divided into blocks of 5"):
        attachment.attach(unet, "oft", {"rank": 5})
    assert not attachment.adapter_names(unet)


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"timestep_rank": 0.5}], ids=str)
def test_options_of_low_rank_factors_are_refused(options):
    with pytest.raises(UserError, match="which blocks don't have"):
        attachment.attach(tiny_unet(), "oft", options)
