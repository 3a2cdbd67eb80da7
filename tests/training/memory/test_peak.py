"""Peak memory."""

import torch

from training.memory.peak import in_subprocess, peak_memory, reset_peak_memory


def test_a_subprocess_has_its_own_peak():
    allocated = torch.ones(2**28)  # 1 GiB
    assert in_subprocess(peak_memory) < peak_memory() - allocated.nbytes / 2


def test_the_peak_is_that_of_the_given_device(monkeypatch):
    """A run on the CPU of a machine with an idle GPU reports the memory of the process."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert reset_peak_memory("cpu") > 50e6 and peak_memory("cpu") > 50e6
