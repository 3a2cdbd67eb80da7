"""A sample of the fuzzed inputs; ``make fuzz`` tries all."""

import subprocess
import sys

from conftest import ROOT


def test_a_thousand_mutated_inputs_are_read_or_refused_in_bounded_time_and_memory():
    done = subprocess.run([sys.executable, ROOT / "tests" / "fuzz", "--share", "0.005"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
