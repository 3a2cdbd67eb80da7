"""What benchmarks rest on: fair turns, shared weights, a floor without adapters, memory that is a process's own."""

import torch
from conftest import tiny_unet

from hra_diffusion.adapters import attachment
from training.memory import measure


def test_contestants_take_turns_and_the_first_round_does_not_count():
    turns: list[str] = []
    spent = measure.interleaved({name: lambda n=name: turns.append(n) for name in "ab"}, rounds=2)
    assert turns == ["a", "b"] * 3
    assert {name: len(own) for name, own in spent.items()} == {"a": 2, "b": 2}
    assert measure.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert measure.spread([3.0, 1.0, 2.0]) == "2 (1 to 3)"


def test_contestants_take_turns_in_being_first():
    turns: list[str] = []
    contestants = {name: lambda n=name: turns.append(n) for name in "ab"}
    measure.interleaved(contestants, rounds=3, warm_up=False, alternate=True)
    assert "".join(turns) == "abbaab"


def test_three_rounds_are_measured_even_when_time_is_up():
    assert [len(measure.interleaved({"a": int}, rounds, minutes=0)["a"]) for rounds in (1, 9)] == [1, 3]


def test_twins_share_weights_and_keep_their_adapters_apart():
    unet = tiny_unet()
    twin = measure.twin(unet)
    attachment.attach(twin, "hra", {"rank": 2})
    assert attachment.adapter_names(twin) and not attachment.adapter_names(unet)
    assert {p.data_ptr() for p in unet.parameters()} <= {p.data_ptr() for p in twin.parameters()}


def test_a_step_moves_the_adapter_and_nothing_else():
    unet = tiny_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    twin = measure.twin(unet)
    attachment.attach(twin, "hra", {"rank": 2})
    parameters = attachment.adapter_parameters(twin, "default")
    start = {name: value.detach().clone() for name, value in parameters.items()}
    measure.training_step(twin, parameters.values(), batch_size=1)()
    assert all(not torch.equal(value, start[name]) for name, value in parameters.items())
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_a_step_pays_for_the_methods_regulariser():
    unet, moved = tiny_unet(), []
    for strength in (0.0, 1.0):
        twin = measure.twin(unet)
        attachment.attach(twin, "hra", {"rank": 4, "orthogonality": strength})
        parameters = attachment.adapter_parameters(twin, "default").values()
        torch.manual_seed(0)
        measure.training_step(twin, parameters, 1, penalty=lambda model=twin: attachment.penalty(model, "default"))()
        moved.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert not torch.equal(*moved)


def test_the_floor_goes_back_through_the_activations_alone():
    """As deep as a step with adapters does: as many backward products of the activations, none of the weights."""

    def products(work) -> int:
        work()
        with torch.profiler.profile() as seen:
            work()
        return sum(event.count for event in seen.key_averages() if event.key == "aten::convolution_backward")

    unet = tiny_unet()
    adapted = measure.twin(unet)
    attachment.attach(adapted, "hra", {"rank": 2})
    parameters = attachment.adapter_parameters(adapted, "default").values()
    floor = measure.bare_pass(measure.twin(unet), 1)
    assert products(floor) == products(measure.training_step(adapted, parameters, 1)) > 0
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_a_process_of_its_own_has_its_own_peak():
    held = torch.ones(2**28)  # 1 GiB
    assert measure.in_subprocess(measure.peak_memory) < measure.peak_memory() - held.nbytes / 2


def test_memory_is_that_of_the_device_measured(monkeypatch):
    """Where a GPU lies idle beside a run on the CPU, its 0 bytes are not the run's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert measure.forget_peak("cpu") > 50e6 and measure.peak_memory("cpu") > 50e6


def test_the_machine_is_named():
    facts = measure.machine()
    assert facts["torch"] == torch.__version__ and f"{torch.get_num_threads()} threads" in facts["processor"]
    assert measure.markdown(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"
