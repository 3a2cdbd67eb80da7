"""The training step: what it sends to the device, and when its results are read."""

import pytest
import torch
from conftest import tiny_xl_pipe
from sessions import make_session
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import training.step
from hra_diffusion.adapters import registry
from training.errors import TrainingError
from training.loop import train
from training.runs.events import Checkpoint, Sample, Step
from training.runs.lookup import find
from training.step import TrainingStep
from training.step_log import StepLog

WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_static", "masked_select",
    "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "bincount", "histc", "_linalg_check_errors",
    "lift_fresh", "_pin_memory",
}  # fmt: skip
"""Operations that wait for a device or whose output's shape depends on values. ``lift_fresh`` is a new tensor of Python
numbers, whose copy to a device waits."""
READING = {torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.item}


class Operations(TorchDispatchMode):
    """The operations within the block, with the shapes, dtypes and numbers that they are given."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs))
        tensors = [(tuple(leaf.shape), leaf.dtype) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        self.calls.append((str(func), tensors))
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put_", "_index_put_impl_") and any(kind == torch.bool for _, kind in tensors)
        assert name not in WAITING and not masked, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


class NoReading(TorchFunctionMode):
    """Methods that copy a tensor to the host fail, which on a CPU do nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in READING, f"{func} reads from the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def batches_on_the_host(monkeypatch):
    """Preparing batches is the host's work and not observed."""
    make_batches = training.step.make_batches

    def unobserved(*args):
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return make_batches(*args)

    monkeypatch.setattr(training.step, "make_batches", unobserved)


VARIANTS = {
    "text encoder, class images": {},
    "accumulation, average": {"gradient_accumulation_steps": 2, "ema_decay": 0.9, "prior_loss_weight": 0},
    "base output": {"preservation": "base-output", "caption_dropout": 0.5},
    "checkpointing, timestep rank": {
        "gradient_checkpointing": True, "train_text_encoder": False, "prior_loss_weight": 0,
        "options": {"timestep_rank": 0.5}, "loss_type": "huber",
    },
}  # fmt: skip


CASES = [(method, next(iter(VARIANTS))) for method in registry.method_names()]
CASES += [(method, variant) for method in ("lora", "shoft", "boft") for variant in list(VARIANTS)[1:]]
"""Every method in the first variant, and methods of different forms in the others."""


@pytest.mark.parametrize(("method", "variant"), CASES)
def test_steps_do_not_wait_for_the_device_and_are_the_same_operations(
    settings, tmp_path, batches_on_the_host, method, variant
):
    changes = VARIANTS[variant]
    if method in ("oft", "boft"):  # blocks have no rank to share
        changes = changes | {"options": {"rank": 4}}
    session = make_session(settings(method=method, log_every=10, **changes), tmp_path)
    step, log, sequences = TrainingStep(session), StepLog(session), []
    step(1e-2)  # creates the optimiser's state
    for _ in range(2):
        with Operations() as operations, NoReading():
            log.begin_step()
            log.add(1e-2, step(1e-2))
        sequences.append(operations.calls)
    assert len(sequences[0]) > 100 and sequences[0] == sequences[1]


@pytest.mark.parametrize(
    "changes", [{"train_text_encoder": True}, {"size_conditioning": False}], ids=["text", "unsized"]
)
def test_steps_of_sdxl_do_not_wait_for_the_device(settings, tmp_path, batches_on_the_host, changes):
    config = settings(**{"method": "lora", "prior_loss_weight": 0, "train_text_encoder": False} | changes)
    step = TrainingStep(make_session(config, tmp_path, tiny_xl_pipe()))
    with Operations(), NoReading():
        step(1e-2)


def test_losses_are_the_same_however_rarely_they_are_read(settings, tmp_path):
    """They are read before each checkpoint and each round of samples."""
    events = {1: [], 3: []}
    for every, listener in events.items():
        config = settings(steps=6, log_every=every, checkpoint_every=4, sample_every=5, gradient_accumulation_steps=2)
        train(config, tmp_path / str(every), [listener.append])
    each, third = (
        [(e.step, e.loss, e.learning_rate) for e in found if isinstance(e, Step)] for found in events.values()
    )
    assert each == third and [step for step, *_ in each] == [1, 2, 3, 4, 5, 6]
    order = [(type(e).__name__, e.step) for e in events[3] if isinstance(e, Step | Checkpoint | Sample)]
    assert order.index(("Step", 4)) < order.index(("Checkpoint", 4)) and ("Sample", 5) in order
    assert order.index(("Step", 5)) < order.index(("Sample", 5)) < order.index(("Step", 6))


def test_nan_is_noticed_before_a_checkpoint_though_losses_are_rarely_read(settings, tmp_path):
    with pytest.raises(TrainingError, match=r"became (nan|inf) at step \d+; .*try a lower --learning-rate than 1"):
        train(settings(method="lora", learning_rate=1.0, max_grad_norm=1e30, steps=400, checkpoint_every=7,
                       sample_every=0, weight_decay=0, dtype="float16", mixed_precision="no", options={"alpha": 1e4},
                       prior_loss_weight=0, train_text_encoder=False, log_every=100), tmp_path)  # fmt: skip
    run = find(tmp_path, "Rex")
    assert run is not None and run.state.status == "failed" and not run.adapter.exists()
    failed = int(run.state.reason.split("at step ")[1].split(";")[0])
    assert all(int(checkpoint.name) < failed for checkpoint in run.checkpoints())


def test_dropout_of_an_adapter_is_seeded_by_the_step(settings, tmp_path):
    session = make_session(settings(method="lora", prior_loss_weight=0, train_text_encoder=False), tmp_path)
    session.config.options["dropout"] = 0.5
    step, drawn = TrainingStep(session), []
    for position in (3, 4, 3):
        step.load(position, 1e-2)
        drawn.append(torch.rand(()).item())
    assert drawn[0] == drawn[2] != drawn[1]
