"""Progress of a run, read from its event log."""

import json

import pytest

from training.loop import train
from training.runs import progress
from training.runs.event_text import event_line
from training.runs.events import Step
from training.runs.listeners import LogFile
from training.runs.run_folder import Run


def write_events(run, *events):
    with (run.folder / "events.jsonl").open("a") as log:
        log.writelines(json.dumps({"time": 1000.0, **event}) + "\n" for event in events)


def step(number, loss=0.5, seconds=2.0):
    return {"event": "step", "step": number, "total": 100, "loss": loss, "learning_rate": 1e-3, "seconds": seconds}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "Rex").mkdir()
    return Run(tmp_path / "Rex")


def test_progress_of_a_finished_run(settings, tmp_path):
    train(settings(), tmp_path)
    state = progress.read(Run(tmp_path / "Rex"))
    assert list(state.losses) == [1, 2, 3, 4] and state.checkpoints == [2, 4] and sorted(state.samples) == [0, 2, 4]
    assert state.samples[2] == ["000002-0.png"] and state.seconds_left(2) == 0
    assert state.log[-1].endswith("finished") and "training" in event_line({"event": "phase", "name": "train"})


def test_phase_before_the_first_step(run):
    assert progress.read(run).phase == ""
    write_events(run, {"event": "phase", "name": "load base"})
    state = progress.read(run)
    assert state.phase == "load base" and state.seconds_left(0) is None


def test_time_left_counts_steps_and_samples(run):
    write_events(run, *(step(i) for i in range(1, 11)), {"event": "phase", "name": "samples"},
        {"event": "sample", "step": 10, "pictures": ["/x/000010-0.png"], "time": 1003.0})  # fmt: skip
    assert progress.read(run).seconds_left(50) == 90 * 2 + 2 * 3, "two rounds of three seconds remain"
    assert progress.read(run).seconds_left(60) == 90 * 2 + 2 * 3, "the last step also has one"


def test_an_unfinished_line_is_read_once_it_is_complete(run):
    write_events(run, step(1))
    log = run.folder / "events.jsonl"
    log.write_text(log.read_text() + json.dumps({"time": 1.0, **step(2)})[:30])
    assert list(progress.read(run).losses) == [1]
    log.write_text(log.read_text()[: log.read_text().index("\n") + 1] + json.dumps({"time": 1.0, **step(2)}) + "\n")
    assert list(progress.read(run).losses) == [1, 2]


@pytest.mark.parametrize("torn", [b'{"event": "st', b"\0\0\0", b"\xff", b""])
def test_a_torn_line_is_skipped(run, torn):
    write_events(run, step(1))
    with (run.folder / "events.jsonl").open("ab") as log:
        log.write(torn)
    assert list(progress.read(run).losses) == [1]
    log_file = LogFile(run.folder / "events.jsonl")
    log_file(Step(2, 100, 0.5, 1e-3, 2.0))
    log_file(Step(3, 100, 0.5, 1e-3, 2.0))
    assert list(progress.read(run).losses) == [1, 2, 3]


def test_repeated_steps_of_a_resumed_run_replace_the_earlier_ones(run):
    write_events(run, step(1, 0.9), step(2, 0.8), step(3, 0.7), step(2, 0.4))
    assert progress.read(run).losses == {1: 0.9, 2: 0.4}


def test_smooth_corrects_the_bias_towards_zero():
    assert progress.smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])


@pytest.mark.parametrize(("seconds", "text"), [(48, "0:48"), (725, "12:05"), (3753, "1:02:33"), (-1, "0:00")])
def test_format_duration(seconds, text):
    assert progress.format_duration(seconds) == text
