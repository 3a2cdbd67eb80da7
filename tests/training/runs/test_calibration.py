"""Measured time and memory of a run."""

import os

import pytest

from training import config as configs
from training import measurement
from training.runs import calibration
from training.runs.calibration import Calibration


def test_measure(settings, tmp_path):
    result = measurement.measure(settings(steps=50, resolution=64))
    assert not result.error and result.step > 0 and result.samples > 0 and result.memory > 50e6
    short, long = (result.seconds(settings(steps=steps, sample_every=10), 3) for steps in (10, 110))
    assert long - short == pytest.approx(100 * result.step + 10 * result.samples)


def test_measure_returns_the_error_of_a_run_that_cannot_start(settings):
    assert "rank 64 is too large" in measurement.measure(settings(options={"rank": 64})).error


def test_cost_key_is_independent_of_length_and_subject(settings):
    same = settings(name="other", steps=9, seed=5, learning_rate=1e-3, num_class_images=9)
    assert calibration.cost_key(settings()) == calibration.cost_key(same)
    for changes in (
        {"batch_size": 3},
        {"method": "lora"},
        {"prior_loss_weight": 0},
        {"options": {"rank": 4}},
        {"compile": True},
    ):
        assert calibration.cost_key(settings()) != calibration.cost_key(settings(**changes))


def test_the_result_of_a_measurement_is_saved(settings, tmp_path):
    assert calibration.load(tmp_path, settings()) is None
    folder = tmp_path / ".queue" / "calibrations"
    folder.mkdir(parents=True)
    configs.write(settings(), folder / f"{calibration.cost_key(settings())}.yaml")
    measurement.main(tmp_path, calibration.cost_key(settings()))
    assert isinstance(calibration.load(tmp_path, settings()), Calibration)


def test_a_failed_measurement_is_not_repeated_until_it_expires(settings, tmp_path, monkeypatch):
    """The page calls ``start`` every second and a half."""
    monkeypatch.setattr(calibration, "_started", {})
    calibration.start(tmp_path, settings())
    (process,) = calibration._started.values()
    process.kill()
    process.wait()
    calibration.start(tmp_path, settings())
    assert calibration._started == {} and "interrupted" in calibration.load(tmp_path, settings()).error
    key = calibration.cost_key(settings(batch_size=3))
    (tmp_path / ".queue" / "calibrations" / f"{key}.yaml").mkdir()
    measurement.main(tmp_path, key)
    assert calibration.load(tmp_path, settings(batch_size=3)).error
    os.utime(tmp_path / ".queue" / "calibrations" / f"{key}.json", (0, 0))
    assert calibration.load(tmp_path, settings(batch_size=3)) is None


def test_measure_with_a_memory_limit(settings):
    result = measurement.measure(settings(memory_limit="20GB"))
    assert not result.error and result.step > 0
