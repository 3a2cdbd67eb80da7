"""The training steps that benchmarks time."""

import torch
from conftest import tiny_unet

from app.benchmarking.workloads import make_frozen_step, make_training_step, weight_sharing_copy
from hra_diffusion.adapters import attachment


def test_copies_share_weights_but_not_adapters():
    unet = tiny_unet()
    copy = weight_sharing_copy(unet)
    attachment.attach(copy, "hra", {"rank": 2})
    assert attachment.adapter_names(copy) and not attachment.adapter_names(unet)
    assert {p.data_ptr() for p in unet.parameters()} <= {p.data_ptr() for p in copy.parameters()}


def test_a_training_step_changes_only_the_adapter():
    unet = tiny_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    copy = weight_sharing_copy(unet)
    attachment.attach(copy, "hra", {"rank": 2})
    parameters = attachment.adapter_parameters(copy, "default")
    start = {name: value.detach().clone() for name, value in parameters.items()}
    make_training_step(copy, parameters.values(), batch_size=1)()
    assert all(not torch.equal(value, start[name]) for name, value in parameters.items())
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_a_training_step_includes_the_regulariser_of_the_method():
    unet, trained = tiny_unet(), []
    for strength in (0.0, 1.0):
        copy = weight_sharing_copy(unet)
        attachment.attach(copy, "hra", {"rank": 4, "orthogonality": strength})
        parameters = attachment.adapter_parameters(copy, "default").values()
        torch.manual_seed(0)
        make_training_step(copy, parameters, 1, penalty=lambda model=copy: attachment.penalty(model, "default"))()
        trained.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert not torch.equal(*trained)


def test_a_frozen_step_computes_the_gradients_of_activations_only():
    """It has as many backward products of activations as a step with adapters, and none of weights."""

    def count_products(step) -> int:
        step()
        with torch.profiler.profile() as profile:
            step()
        return sum(event.count for event in profile.key_averages() if event.key == "aten::convolution_backward")

    unet = tiny_unet()
    adapted = weight_sharing_copy(unet)
    attachment.attach(adapted, "hra", {"rank": 2})
    parameters = attachment.adapter_parameters(adapted, "default").values()
    frozen_step = make_frozen_step(weight_sharing_copy(unet), 1)
    assert count_products(frozen_step) == count_products(make_training_step(adapted, parameters, 1)) > 0
    assert all(parameter.grad is None for parameter in unet.parameters())
