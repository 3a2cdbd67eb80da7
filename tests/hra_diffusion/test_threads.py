"""Sharing of cores between processes, and limited spinning of idle threads."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from hra_diffusion import threads
from hra_diffusion.processes import start_time

COMPUTE = """
import torch
from hra_diffusion.threads import sharing_cores
torch.set_num_threads(6)
with sharing_cores("cpu"):
    print(torch.get_num_threads(), flush=True)
    input()
"""


@pytest.fixture
def six_threads(monkeypatch, tmp_path):
    """torch with six threads, in a temporary folder where no other process has an entry."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


def test_busy_processes_share_the_cores(six_threads):
    with threads.sharing_cores("cpu"):
        assert torch.get_num_threads() == 6, "a single process has all cores"
        (threads._folder() / ".DS_Store").touch()
        other = subprocess.Popen([sys.executable, "-c", COMPUTE], cwd=ROOT, stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True)  # fmt: skip
        try:
            assert other.stdout.readline() == "3\n"
            threads.share_cores()
            assert torch.get_num_threads() == 3
            own, start = os.getpid(), start_time(os.getpid())
            (threads._folder() / f"{own}-{start:.2f}").rename(threads._folder() / f"{own}-{start - 1:.2f}")
            threads.share_cores()
            assert torch.get_num_threads() == 3, "setting the clock has no effect"
            (threads._folder() / f"{own}-{start - 1:.2f}").rename(threads._folder() / f"{own}-{start:.2f}")
            with threads.sharing_cores("cpu"):
                assert torch.get_num_threads() == 3, "nested blocks count once"
        finally:
            other.kill()
            other.wait()
        threads.share_cores()
        assert torch.get_num_threads() == 6, "a killed process does not count"
        torch.set_num_threads(1)
    assert torch.get_num_threads() == 6
    torch.set_num_threads(5)
    threads.share_cores()
    assert torch.get_num_threads() == 5, "no effect outside a block"


def test_omp_num_threads_and_other_devices_change_nothing(six_threads, monkeypatch):
    monkeypatch.setattr(threads, "_count_processes", lambda: 2)
    with threads.sharing_cores("cuda"):
        threads.share_cores()
        assert torch.get_num_threads() == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    with threads.sharing_cores("cpu"):
        assert torch.get_num_threads() == 6


@pytest.mark.skipif(sys.platform != "linux", reason="only PyTorch's Linux builds use GNU's OpenMP")
@pytest.mark.parametrize("package", ["app", "training", "benchmarks"])
@pytest.mark.parametrize(("setting", "spins"), [({}, threads.SPIN_COUNT), ({"OMP_WAIT_POLICY": "active"}, None)])
def test_packages_limit_spinning_before_importing_torch(package, setting, spins):
    code = f"import os, sys, {package}; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if key not in threads.SPIN_SETTINGS} | setting
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert printed.stdout == f"{spins} False\n"
