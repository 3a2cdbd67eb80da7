"""The count of operations that an adapter adds to a step."""

import torch
from conftest import tiny_unet

from benchmarks import bench_ops
from hra_diffusion.adapters.methods import COMPARED


def test_views_and_allocations_are_not_counted():
    x = torch.ones(2, 3, requires_grad=True)
    with bench_ops.OperationCounter() as counter:
        columns = x.detach().t().reshape(3, 2).expand(3, 2)
        torch.empty_like(columns)
        (columns @ x).sum().backward()
    # of the backward pass: the gradient of the sum, and a product of it for x
    assert counter.calls == {"mm": 2, "sum": 1, "ones_like": 1}


def test_an_adapter_is_charged_with_what_it_adds_per_layer():
    """LoRA on a layer adds two products in the forward pass, and two for each gradient in the backward pass."""
    added = bench_ops.added_operations(tiny_unet().to(torch.bfloat16), 2, text_learns=True)
    assert set(added) == set(COMPARED)
    assert 6 <= added["lora"] < added["moslora"] < added["lora"] + 6
