"""Predictions before Start come from real steps; budgets are matched by counting real adapters."""

import os
from collections import Counter

import pytest
from conftest import tiny_pipe, tiny_xl_pipe

from hra_diffusion.adapters import registry
from training import budget
from training.runs import calibration
from training.runs.calibration import Calibration
from training.session import add_adapter


def test_a_measurement_is_of_real_steps(settings, tmp_path):
    one = calibration.measure(settings(steps=50, resolution=64))
    assert not one.error and one.step > 0 and one.samples > 0 and one.memory > 50e6
    short, long = (one.seconds(settings(steps=steps, sample_every=10), 3) for steps in (10, 110))
    assert long - short == pytest.approx(100 * one.step + 10 * one.samples)


def test_what_cannot_run_says_so_before_start(settings):
    assert "rank 64 is too large" in calibration.measure(settings(options={"rank": 64})).error


def test_one_measurement_serves_all_lengths_and_subjects(settings):
    same = settings(name="other", steps=9, seed=5, learning_rate=1e-3, num_class_images=9)
    assert calibration.costs(settings()) == calibration.costs(same)
    for changes in ({"batch_size": 3}, {"method": "lora"}, {"prior_loss_weight": 0}, {"options": {"rank": 4}}):
        assert calibration.costs(settings()) != calibration.costs(settings(**changes))


def test_a_measurement_is_kept(settings, tmp_path):
    assert calibration.known(tmp_path, settings()) is None
    folder = tmp_path / ".queue" / "calibrations"
    folder.mkdir(parents=True)
    calibration.configs.write(settings(), folder / f"{calibration.costs(settings())}.yaml")
    calibration.main(tmp_path, calibration.costs(settings()))
    assert isinstance(calibration.known(tmp_path, settings()), Calibration)


def test_a_measurement_that_breaks_is_not_begun_again_for_ever(settings, tmp_path, monkeypatch):
    """The page asks every second and a half: what was killed, or failed in any way, is told and left at that."""
    monkeypatch.setattr(calibration, "_started", {})
    calibration.start(tmp_path, settings())
    (process,) = calibration._started.values()
    process.kill()
    process.wait()
    calibration.start(tmp_path, settings())
    assert calibration._started == {} and "broke off" in calibration.known(tmp_path, settings()).error
    key = calibration.costs(settings(batch_size=3))
    (tmp_path / ".queue" / "calibrations" / f"{key}.yaml").mkdir()
    calibration.main(tmp_path, key)
    assert calibration.known(tmp_path, settings(batch_size=3)).error
    os.utime(tmp_path / ".queue" / "calibrations" / f"{key}.json", (0, 0))
    assert calibration.known(tmp_path, settings(batch_size=3)) is None, "the cause may have passed long since"


def test_a_run_that_must_fit_is_measured_too(settings):
    one = calibration.measure(settings(memory_limit="20GB"))
    assert not one.error and one.step > 0


@pytest.mark.parametrize("method", registry.method_names())
@pytest.mark.parametrize("make", [tiny_pipe, tiny_xl_pipe])
@pytest.mark.parametrize("texts", [False, True])
def test_counts_are_those_of_the_adapter_that_learns(settings, method, make, texts):
    pipe, config = make(), settings(method=method, train_text_encoder=texts)
    counted = budget.count(method, config.options, budget.layer_shapes(pipe, config))
    assert counted == sum(parameter.numel() for parameter in add_adapter(config, pipe).values())


@pytest.mark.parametrize("method", registry.method_names())
def test_ranks_are_matched_to_a_budget(method):
    shapes = Counter({(64, 64): 6, (64, 48): 2})
    wanted = budget.count("lora", {"rank": 8}, shapes)
    rank = budget.matched_rank(method, {}, shapes, wanted)
    found = budget.count(method, {"rank": rank}, shapes)
    others = [
        budget.count(method, {"rank": r}, shapes) for r in range(max(1, rank - 4), rank + 5) if allowed(method, r)
    ]
    assert abs(found - wanted) == min(abs(other - wanted) for other in others)
    assert abs(found - wanted) < 0.2 * wanted


def allowed(method, rank):
    try:
        registry.get_method(method).parse({"rank": rank})
    except ValueError:
        return False
    return True
