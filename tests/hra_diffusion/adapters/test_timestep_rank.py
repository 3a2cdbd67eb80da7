"""T-LoRA: noisy samples of a training batch use the first ranks only."""

import copy

import pytest
import torch
from conftest import relative, stir
from torch import nn

from hra_diffusion.adapters import activation, attachment, registry
from hra_diffusion.adapters.factors import rank_mask

METHODS = ["lora", "moslora", "hra", "hoft", "shoft"]


def test_ranks_follow_the_paper():
    """arXiv 2507.05964: r(t) = r_min + ⌊(r − r_min)(T − t)/T⌋, here for t = T, T/2, T/10 and 0."""
    mask = rank_mask(torch.tensor([0.0, 0.5, 0.9, 1.0]), 8, 8, 0.5)
    assert mask.sum(dim=1).tolist() == [4, 6, 7, 8]
    assert mask[1].tolist() == [True] * 6 + [False] * 2
    assert torch.equal(rank_mask(torch.tensor([0.0]), 8, 4, 0.5), torch.tensor([[True, True, False, False] * 2]))


def adapted(layer, method, options):
    model = nn.ModuleDict({"to_q": copy.deepcopy(layer)}).train()
    attachment.attach(model, method, options, name="a")
    stir(attachment.adapter_parameters(model, "a").values(), by=1.0)
    return model


@pytest.mark.parametrize(
    ("layer", "x"),
    [(nn.Linear(16, 24), torch.randn(3, 5, 16)), (nn.Conv2d(4, 24, 3), torch.randn(3, 4, 6, 6))],
    ids=["linear", "conv"],
)
@pytest.mark.parametrize("method", METHODS)
def test_each_sample_uses_the_ranks_of_its_timestep(layer, x, method):
    """The noisiest sample has the adapter of its first ranks, or reflections, alone; the cleanest has all."""
    if method in ("hoft", "shoft") and isinstance(layer, nn.Conv2d):
        pytest.skip("the update of a convolution composes both sides first: its ranks are thinned, not its chains")
    model = adapted(layer, method, {"rank": 8, "timestep_rank": 0.5})
    first = adapted(layer, method, {"rank": 4})
    whole, parts = (attachment.adapter_parameters(m, "a") for m in (model, first))
    for key, part in parts.items():
        part.data = whole[key].data[tuple(slice(size) for size in part.shape)].clone()
    if method == "moslora":  # the mixer comes before the mask
        mixed = whole["to_q.mixer"] @ whole["to_q.down"]
        parts["to_q.down"].data, parts["to_q.mixer"].data = mixed[:4].detach().clone(), torch.eye(4)
    with torch.no_grad():
        unmasked = model["to_q"](x)
        activation.set_rank_shares(model, torch.tensor([0.0, 0.6, 1.0]))
        found, least = model["to_q"](x), first["to_q"](x)
        assert relative(found[0], least[0]) < 1e-5 and relative(found[2], unmasked[2]) < 1e-6
        assert relative(found[1], unmasked[1]) > 1e-3 < relative(found[1], least[1])
        assert torch.equal(model.eval()["to_q"](x), unmasked), "a finished adapter has all its ranks"


def test_groups_of_a_batch_keep_their_own_timesteps():
    layer, x = nn.Linear(16, 24), torch.randn(4, 5, 16)
    model = adapted(layer, "hra", {"rank": 8, "timestep_rank": 0.5})
    with torch.no_grad():
        activation.set_rank_shares(model, torch.tensor([0.0, 1.0, 0.0, 1.0]))
        whole = model["to_q"](x)
        with activation.batch_adapters(model, [({"a": 1.0}, 1), ({}, 2), ({"a": 1.0}, 1)]):
            found = model["to_q"](x)
    torch.testing.assert_close(found[[0, 3]], whole[[0, 3]])
    torch.testing.assert_close(found[1:3], layer(x)[1:3])


def test_every_method_has_the_option():
    assert set(registry.options()["timestep_rank"][1]) >= set(METHODS)
