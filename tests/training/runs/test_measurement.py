"""A measurement that takes too long ends with an error, so that runs do not wait for it."""

import multiprocessing

from training import measurement
from training.runs import calibration


def hang(path):
    measurement.MAX_SECONDS = 0.2
    with measurement.time_limit(path):
        multiprocessing.Event().wait()


def test_a_measurement_that_hangs_ends_with_an_error(settings, tmp_path):
    path = calibration.result_path(tmp_path, settings())
    process = multiprocessing.get_context("spawn").Process(target=hang, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == 1 and "take longer than" in calibration.load(tmp_path, settings()).error
