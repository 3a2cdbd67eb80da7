"""Training under the rules of Windows."""

import signal
import time

import pytest
from conftest import StopAfter
from windows import PEAK, windows  # noqa: F401 (a fixture)

from training import worker
from training.loop import train
from training.memory.peak import peak_memory, reset_peak_memory
from training.runs import dispatch
from training.runs.queue import Queue

SHORT = {"method": "lora", "prior_loss_weight": 0, "train_text_encoder": False, "sample_prompts": []}


def test_train_stop_and_resume(windows, settings, tmp_path):  # noqa: F811
    changes = {
        "prior_loss_weight": 1.0,
        "num_class_images": 1,
        "sample_prompts": ["a {subject}"],
        "sample_every": 0,
        "steps": 2,
    }
    config = settings(**SHORT | changes)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, [StopAfter(1)])
    adapter = train(config, tmp_path, resume=True)
    assert adapter.is_file() and not windows
    queue = Queue(tmp_path)
    for name in ("a", "b"):
        queue.add(settings(name=name))
    queue.move("b", 0)
    queue.cancel("a")
    assert queue.waiting() == ["b"]


def test_peak_memory(windows):  # noqa: F811
    assert reset_peak_memory() == peak_memory() == PEAK


@pytest.mark.parametrize(
    ("code", "message"),
    [(-9, "killed, most likely for lack of memory"), (-11, "ended by signal SIGSEGV"), (1, "ended with code 1"),
     (0xC0000005, "ended with code 3221225477")],
)  # fmt: skip
def test_cause_of_an_exit_code(windows, code, message):  # noqa: F811
    assert message in dispatch.cause(code)


def test_stop_without_a_signal(settings, tmp_path):
    """The queue writes a file, and the training process interrupts itself."""
    queue, number = Queue(tmp_path), signal.SIGTERM
    run = queue.add(settings())
    before = signal.getsignal(number)
    try:
        signal.signal(number, signal.default_int_handler)
        with run.locked(), pytest.raises(KeyboardInterrupt):
            queue.stop("Rex")
            worker.watch_for_stop(run)
            for _ in range(100):
                time.sleep(0.05)
    finally:
        signal.signal(number, before)
    assert run.state.status == "waiting"
