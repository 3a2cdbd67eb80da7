"""The script that runs all benchmarks on a machine with a GPU, tried on the CPU."""

import importlib
import json
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from benchmarks import (
    bench_fit,
    bench_floor,
    bench_inference,
    bench_peft,
    bench_serving,
    bench_side_by_side,
    bench_step,
    claims,
    gpu,
    tables,
)


@pytest.mark.parametrize("part", gpu.PARTS, ids=lambda part: part.name)
def test_every_part_measures_on_tiny_models(part, tmp_path, monkeypatch):
    for module in (bench_fit, bench_serving):
        monkeypatch.setattr(module, "in_subprocess", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(bench_side_by_side, "PROMPTS", bench_side_by_side.PROMPTS[:2])
    monkeypatch.setattr(bench_side_by_side, "METHODS", ("lora", "hra"))
    # in this process, which has freed memory to use, the second model may add nothing to it
    monkeypatch.setattr(bench_peft, "in_subprocess", lambda function, *a: [gib + 0.01 for gib in function(*a)])
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{part.name}.py", *part.smoke.split(), "--output", str(tmp_path)])
    importlib.import_module(f"benchmarks.{part.name}").main()
    result = json.loads((tmp_path / f"{part.name}.json").read_text(encoding="utf-8"))
    assert result["rows"]
    assert all(len(row) == len(result["columns"]) for row in result["rows"])
    assert "peft" in result["machine"], "the version that ratios to PEFT refer to"


@pytest.mark.parametrize("module", [bench_step, bench_floor, bench_inference], ids=lambda module: module.__name__)
def test_on_a_gpu_the_targets_apply_to_captured_steps(module, tmp_path, monkeypatch):
    """Captured steps are replaced by the steps themselves, since there is no GPU here."""
    monkeypatch.setattr(
        module, "captured", lambda steps, device: {f"{name}, CUDA graph": step for name, step in steps.items()}
    )
    options = [*gpu.TINY.split(), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [f"{module.__name__.replace('.', '/')}.py", *options])
    module.main()
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text(encoding="utf-8"))
    names = [target["what"] for target in result["targets"]]
    assert names and all("CUDA graph" in name for name in names)
    assert len(result["rows"]) > len(names)


def test_every_part_belongs_to_a_claim_and_all_fit_in_eight_minutes():
    assert {part.name for part in gpu.PARTS} <= {claim.name for claim in claims.CLAIMS}
    assert sum(part.seconds for part in gpu.PARTS) <= gpu.SECONDS == 8 * 60


def test_an_interrupted_call_continues_with_the_parts_that_have_no_result(tmp_path, monkeypatch, capsys):
    (tmp_path / "package" / "benchmarks").mkdir(parents=True)
    (tmp_path / "package" / "benchmarks" / "__init__.py").touch()
    (tmp_path / "package" / "benchmarks" / "quick.py").write_text(
        "import pathlib, sys; pathlib.Path(sys.argv[-1], 'quick-cuda.json').write_text(sys.argv[2])", encoding="utf-8"
    )
    (tmp_path / "package" / "benchmarks" / "slow.py").write_text(
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
        encoding="utf-8",
    )
    monkeypatch.setattr(gpu, "ROOT", tmp_path / "package")
    parts = [gpu.Part("slow", 1, "", ""), gpu.Part("quick", 60, "", "")]
    start = time.monotonic()
    assert gpu.run_parts(parts, tmp_path / "out", 60, smoke=False) == 1, "the slow part has no result"
    assert time.monotonic() - start < 30, "its process was stopped, with those that it had started"
    assert (tmp_path / "out" / "quick-cuda.json").read_text(encoding="utf-8") == "cuda"
    assert gpu.run_parts(parts, tmp_path / "out", -1, smoke=False) == 1
    printed = capsys.readouterr().out
    assert "slow: stopped after its limit of 1 s" in printed
    assert "quick: measured already" in printed and "slow: no time left" in printed


def test_missing_packages_are_named_before_anything_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "PACKAGES", (*gpu.PACKAGES, "no-such-package"))
    assert gpu.main(["--output", str(tmp_path)]) == len(gpu.PARTS)
    assert "missing: no-such-package" in capsys.readouterr().out.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_script_needs_the_standard_library_alone():
    """On a new machine it can say which packages are missing."""
    command = [sys.executable, "-S", str(ROOT / "benchmarks" / "gpu.py"), "--smoke"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == len(gpu.PARTS)
    assert "missing: hra-diffusion, torch" in result.stdout


def test_results_of_a_gpu_are_shown_beside_those_of_the_cpu(tmp_path):
    assert "not measured | not measured" in tables.page(tmp_path)
    cpu = json.loads((tables.RESULTS / "bench_step.json").read_text(encoding="utf-8"))
    target = {"what": "hra, CUDA graph ÷ LoRA", "value": 1.0, "limit": 1.05}
    (tmp_path / "bench_step-cuda.json").write_text(json.dumps(cpu | {"targets": [target], "bars": []}))
    assert "| hra, CUDA graph ÷ LoRA | **1** | ≤ 1.05 | ✓ |" in tables.page(tmp_path)
    assert "| not measured | 1 of 1 met |" in tables.page(tmp_path)
