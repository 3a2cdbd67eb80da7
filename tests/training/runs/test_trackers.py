"""Experiment trackers: what they get, and what happens without their package."""

import struct

import pytest
from accelerate import tracking
from conftest import StopAfter
from tensorboardX.proto.event_pb2 import Event as TensorBoardEvent

from training.errors import TrainingError
from training.loop import train
from training.runs.events import Finished, Scored
from training.runs.run_folder import Run
from training.runs.trackers import TrackerListener


class Notebook(tracking.GeneralTracker):
    """Keeps everything it gets."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.values, self.images, self.finished = {}, {}, 0

    @property
    def tracker(self):
        return self

    def log(self, values, step=None, **_):
        self.values.setdefault(step, {}).update(values)

    def log_images(self, values, step=None, **_):
        self.images[step] = values["samples"].shape

    def finish(self):
        self.finished += 1


def scalars(folder):
    """Values that TensorBoard reads from its files, as (tag, step), and the tags of images."""
    values, images = {}, {}
    for file in folder.rglob("events.out.*"):
        data, start = file.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack("<Q", data[start : start + 8])
            event = TensorBoardEvent.FromString(data[start + 12 : start + 12 + length])
            start += length + 16
            for value in event.summary.value:
                if value.HasField("image"):
                    images[value.tag, event.step] = (value.image.height, value.image.width)
                elif value.WhichOneof("value") == "simple_value":
                    values[value.tag, event.step] = value.simple_value
    return values, images


def test_a_tracker_gets_losses_rates_norms_and_samples(settings, tmp_path):
    tracker, events = Notebook(), []
    train(settings(prior_loss_weight=0), tmp_path, [TrackerListener([tracker]), events.append])
    assert sorted(tracker.values) == [1, 2, 3, 4] and tracker.finished == 1
    assert tracker.values[1].keys() == {"loss", "learning_rate", "gradient_norm"} and tracker.values[1]["loss"] > 0
    assert tracker.images == {0: (1, 64, 64, 3), 2: (1, 64, 64, 3), 4: (1, 64, 64, 3)}
    listener = TrackerListener([tracker])
    listener(Scored(4, 0.5, 0.3))
    assert tracker.values[4]["similarity_to_photos"] == 0.5 and any(isinstance(event, Finished) for event in events)


def test_tensorboard_files_hold_the_run(settings, tmp_path):
    config = settings(report_to=["tensorboard"], prior_loss_weight=0)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, [StopAfter(3)])
    train(config, tmp_path, resume=True)
    values, images = scalars(tmp_path / "Rex" / "logs")
    assert {step for tag, step in values if tag == "loss"} == {1, 2, 3, 4}
    assert values["learning_rate", 1] > 0 and values["gradient_norm", 2] > 0 and images["samples", 2] == (64, 64)
    stored = "".join(path.read_text() for path in (tmp_path / "Rex" / "logs").rglob("hparams.yml"))
    assert "learning_rate: 0.01" in stored and "/" not in stored, "settings, but no paths"


def test_a_missing_package_is_an_error_before_the_run_begins(settings, tmp_path):
    with pytest.raises(TrainingError, match=r"--report-to comet_ml needs a package .* pip install comet-ml"):
        train(settings(report_to=["comet_ml"]), tmp_path)
    assert not (tmp_path / "Rex").exists()


def test_a_tracker_that_can_not_be_started_fails_the_run_with_its_reason(settings, tmp_path, monkeypatch):
    class NoLogin(Notebook):
        def __init__(self, name, place, **_):
            raise OSError("log in first")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", type("Tracker", (NoLogin,), {
        "requires_logging_directory": True}))  # fmt: skip
    with pytest.raises(TrainingError, match="the tracker tensorboard can't be started: log in first"):
        train(settings(report_to=["tensorboard"]), tmp_path)
    assert Run(tmp_path / "Rex").state.status == "failed"


def test_an_unknown_tracker_is_an_error(settings):
    with pytest.raises(ValueError, match="report_to"):
        settings(report_to=["notes"])
