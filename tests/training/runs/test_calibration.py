"""Predictions before Start come from real steps."""

import os

import pytest

from training import config as configs
from training import measurement
from training.runs import calibration
from training.runs.calibration import Calibration


def test_a_measurement_is_of_real_steps(settings, tmp_path):
    one = measurement.measure(settings(steps=50, resolution=64))
    assert not one.error and one.step > 0 and one.samples > 0 and one.memory > 50e6
    short, long = (one.seconds(settings(steps=steps, sample_every=10), 3) for steps in (10, 110))
    assert long - short == pytest.approx(100 * one.step + 10 * one.samples)


def test_what_cannot_run_says_so_before_start(settings):
    assert "rank 64 is too large" in measurement.measure(settings(options={"rank": 64})).error


def test_one_measurement_serves_all_lengths_and_subjects(settings):
    same = settings(name="other", steps=9, seed=5, learning_rate=1e-3, num_class_images=9)
    assert calibration.cost_key(settings()) == calibration.cost_key(same)
    for changes in ({"batch_size": 3}, {"method": "lora"}, {"prior_loss_weight": 0}, {"options": {"rank": 4}}):
        assert calibration.cost_key(settings()) != calibration.cost_key(settings(**changes))


def test_a_measurement_is_kept(settings, tmp_path):
    assert calibration.load(tmp_path, settings()) is None
    folder = tmp_path / ".queue" / "calibrations"
    folder.mkdir(parents=True)
    configs.write(settings(), folder / f"{calibration.cost_key(settings())}.yaml")
    measurement.main(tmp_path, calibration.cost_key(settings()))
    assert isinstance(calibration.load(tmp_path, settings()), Calibration)


def test_a_measurement_that_breaks_is_not_begun_again_for_ever(settings, tmp_path, monkeypatch):
    """The page asks every second and a half: what was killed, or failed in any way, is told and left at that."""
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
    assert calibration.load(tmp_path, settings(batch_size=3)) is None, "the cause may have passed long since"


def test_a_run_that_must_fit_is_measured_too(settings):
    one = measurement.measure(settings(memory_limit="20GB"))
    assert not one.error and one.step > 0
