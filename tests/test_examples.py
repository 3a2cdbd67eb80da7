"""The example scripts run to their end."""

import functools
import itertools
import os
import runpy
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import hra_diffusion as hra


@pytest.fixture(scope="module", autouse=True)
def few_denoising_steps(few_denoising_steps):
    """Pictures of the examples, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hra, "generate", functools.partial(hra.generate, settings=hra.Settings(steps=4)))
        yield


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Run a script of examples/ with arguments; return what it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapter files, trained by the first example for two steps each."""
    output = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        for method in ("hra", "lora"):
            options = {"--method": method, "--name": method, "--steps": "2", "--output": str(output)}
            patch.setattr(sys, "argv", ["train", *itertools.chain(*options.items())])
            runpy.run_path(str(ROOT / "examples" / "train_adapter.py"), run_name="__main__")
            assert (output / f"{method}.png").is_file()
    return tuple(output / method / f"{method}.safetensors" for method in ("hra", "lora"))


def test_adapters_mix(run_example, adapters, tmp_path):
    output = run_example("mix_adapters", *adapters, "--output", tmp_path)
    assert len(list(tmp_path.glob("mixed-*.png"))) == 3 and "at 0.5" in output


def test_methods_are_compared_with_scores(run_example, adapters, tmp_path):
    output = run_example("compare_methods", *adapters, "--output", tmp_path)
    assert (tmp_path / "grid.png").is_file() and "lora" in output and "score" in output.lower()


def test_an_export_gives_the_same_images_in_diffusers(run_example, adapters, tmp_path):
    output = run_example("export_to_diffusers", adapters[0], "--output", tmp_path / "exported")
    assert float(output.rsplit(" ", 1)[1]) < 2e-3, "half a level of 255; processors differ"


def test_a_language_model_learns_a_line(run_example):
    losses = [float(line.rsplit(" ", 1)[1]) for line in run_example("adapt_language_model").splitlines()[1:]]
    assert losses[-1] < losses[0] / 2


def test_a_slurm_task_that_is_stopped_is_queued_again(tmp_path):
    """With stand-ins for the two commands that the script calls."""
    stand_ins = {
        "hra-diffusion": 'echo "$@" >> "$OUT/trained"; trap "exit 130" TERM; touch "$OUT/begun"; '
        "while true; do sleep 0.05; done",
        "scontrol": 'echo "$@" >> "$OUT/queued"',
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path),
                                "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "71"}  # fmt: skip
    task = subprocess.Popen(["bash", ROOT / "examples" / "slurm.sh", "configs", "/shared"], env=environment)
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    task.send_signal(signal.SIGTERM)
    assert task.wait(timeout=20) == 130
    assert (tmp_path / "trained").read_text() == "train --config configs/3.yaml --output /shared/3 --resume\n"
    assert (tmp_path / "queued").read_text() == "requeue 71_3\n"
