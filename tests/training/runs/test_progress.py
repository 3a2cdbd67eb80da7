"""How a run stands, from its log; what is advised when it breaks."""

import json

import pytest

from training.loop import train
from training.memory.advice import advise
from training.runs import progress
from training.runs.event_text import event_line
from training.runs.events import Step
from training.runs.listeners import LogFile
from training.runs.run_folder import Run


def say(run, *events):
    with (run.folder / "events.jsonl").open("a") as log:
        log.writelines(json.dumps({"time": 1000.0, **event}) + "\n" for event in events)


def step(number, loss=0.5, seconds=2.0):
    return {"event": "step", "step": number, "total": 100, "loss": loss, "learning_rate": 1e-3, "seconds": seconds}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "Rex").mkdir()
    return Run(tmp_path / "Rex")


def test_a_real_run_is_told_whole(settings, tmp_path):
    train(settings(), tmp_path)
    told = progress.read(Run(tmp_path / "Rex"))
    assert list(told.losses) == [1, 2, 3, 4] and told.checkpoints == [2, 4] and sorted(told.samples) == [0, 2, 4]
    assert told.samples[2] == ["000002-0.png"] and told.seconds_left(2) == 0
    assert told.log[-1].endswith("finished") and "training" in event_line({"event": "phase", "name": "train"})


def test_signs_of_life_before_the_first_step(run):
    assert progress.read(run).phase == ""
    say(run, {"event": "phase", "name": "load base"})
    told = progress.read(run)
    assert told.phase == "load base" and told.seconds_left(0) is None


def test_time_left_counts_steps_and_samples(run):
    say(run, *(step(i) for i in range(1, 11)), {"event": "phase", "name": "samples"},
        {"event": "sample", "step": 10, "pictures": ["/x/000010-0.png"], "time": 1003.0})  # fmt: skip
    assert progress.read(run).seconds_left(50) == 90 * 2 + 2 * 3, "two rounds of three seconds are to come"
    assert progress.read(run).seconds_left(60) == 90 * 2 + 2 * 3, "the last step has one too"


def test_a_line_that_is_still_being_written_waits(run):
    say(run, step(1))
    log = run.folder / "events.jsonl"
    log.write_text(log.read_text() + json.dumps({"time": 1.0, **step(2)})[:30])
    assert list(progress.read(run).losses) == [1]
    log.write_text(log.read_text()[: log.read_text().index("\n") + 1] + json.dumps({"time": 1.0, **step(2)}) + "\n")
    assert list(progress.read(run).losses) == [1, 2]


@pytest.mark.parametrize("torn", [b'{"event": "st', b"\0\0\0", b"\xff", b""])
def test_a_line_that_a_power_cut_tore_costs_that_line_only(run, torn):
    say(run, step(1))
    with (run.folder / "events.jsonl").open("ab") as log:
        log.write(torn)
    assert list(progress.read(run).losses) == [1]
    write = LogFile(run.folder / "events.jsonl")
    write(Step(2, 100, 0.5, 1e-3, 2.0))
    write(Step(3, 100, 0.5, 1e-3, 2.0))
    assert list(progress.read(run).losses) == [1, 2, 3]


def test_a_resumed_run_goes_over_its_steps_again(run):
    say(run, step(1, 0.9), step(2, 0.8), step(3, 0.7), step(2, 0.4))
    assert progress.read(run).losses == {1: 0.9, 2: 0.4}


def test_smoothing_has_no_pull_to_the_start():
    assert progress.smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])


@pytest.mark.parametrize(("seconds", "text"), [(48, "0:48"), (725, "12:05"), (3753, "1:02:33"), (-1, "0:00")])
def test_durations(seconds, text):
    assert progress.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("the loss became nan at step 7; try a lower --learning-rate", {"learning_rate": 0.003}),
        ("out of memory; try a smaller batch size", {"gradient_checkpointing": True}),
        ("the process was killed, most likely for want of memory", {"gradient_checkpointing": True}),
        ("hra can't be put on x: rank 64 is too large for a.b, a 32 to 16 layer", {"options": {"rank": 8}}),
        ("the disk is full: x could not be written", {}),
    ],
)
def test_every_failure_has_an_advice_that_can_be_applied(settings, reason, changes):
    config = settings()
    advice = advise(reason, config)
    assert advice.text
    for field, value in changes.items():
        assert advice.changes[field] == value or advice.changes[field] == config.options | value
    assert bool(advice.changes) == bool(changes)


def test_memory_advice_goes_on_to_smaller_batches(settings):
    less = advise("out of memory", settings(gradient_checkpointing=True, batch_size=4)).changes
    assert less == {"batch_size": 2, "gradient_accumulation_steps": 2}
    odd = advise("out of memory", settings(gradient_checkpointing=True, batch_size=3)).changes
    assert odd == {"batch_size": 1, "gradient_accumulation_steps": 3}, "no photo is left out"
    assert not advise("out of memory", settings(gradient_checkpointing=True, batch_size=1)).changes
