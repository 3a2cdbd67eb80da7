"""Measure the time and memory of runs, and store them where forecasts look for them."""

import sys
import time
from pathlib import Path

from training import measurement
from training.config import TrainConfig
from training.memory.peak import in_subprocess
from training.runs import calibration
from training.runs.calibration import Calibration


def measure_run(config: TrainConfig, output: Path, quiet: bool = False) -> Calibration:
    """Measure a few steps of a run in a subprocess and store the result in the output folder."""
    key = calibration.write_request(output, config)
    wait_for_measurement(output, quiet)
    try:
        in_subprocess(measurement.main, output, key)
    except RuntimeError as error:  # the process was killed for lack of memory, say; others may succeed
        return Calibration(error=f"could not be measured: {error}")
    return calibration.load(output, config) or Calibration(error="was not measured")


def wait_for_measurement(output: Path, quiet: bool) -> None:
    """Wait until no other measurement is running, such as the page's, because they would slow each other down."""
    if calibration.is_measuring(output) and not quiet:
        print(f"waiting for another measurement in {output} to end", file=sys.stderr)
    while calibration.is_measuring(output):
        time.sleep(1)
