"""Output and imports of the Python API and the command line, in new processes."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, save_photos

from hra_diffusion import libraries


def test_the_python_api_logs_nothing_and_keeps_log_levels(base_folder):
    code = (
        "import logging, sys\n"
        "import hra_diffusion as hra, hra_diffusion.libraries\n"
        "pipe = hra.load_base(sys.argv[1])\n"
        "names = ('transformers', 'diffusers', 'bitsandbytes')\n"
        "print([logging.getLogger(name).getEffectiveLevel() for name in names])\n"
        "with hra.libraries.only_errors_logged(): print(logging.getLogger('transformers.x').getEffectiveLevel())\n"
        "logging.getLogger('diffusers').setLevel(10)\n"
        "with hra.libraries.only_errors_logged(): print(logging.getLogger('diffusers').level)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    command = [sys.executable, "-c", code, base_folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.splitlines() == ["[30, 30, 30]", "40", "10"], done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip() and "Loading" not in line]  # loading bars
    assert lines == []


def test_a_run_imports_neither_bitsandbytes_nor_peft_and_prints_ten_lines(base_folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    (tmp_path / "photos").mkdir()
    save_photos(tmp_path / "photos", 1)
    code = (
        "import sys; from app.cli import main\n"
        "code = main(); print(code, sys.modules['bitsandbytes'], sys.modules['peft'])\n"
        "from hra_diffusion.libraries import bitsandbytes_installed, import_bitsandbytes\n"
        "print(bitsandbytes_installed(), hasattr(import_bitsandbytes().optim, 'AdamW8bit'))"
    )
    settings = (
        f"--photos {tmp_path / 'photos'} --class-noun dog --name Rex --base {base_folder} --resolution 64 --device cpu "
        f"--steps 10 --batch-size 1 --prior-loss-weight 0 --sample-every 0 --output {tmp_path / 'outputs'}"
    )
    command = [sys.executable, "-c", code, "train", *settings.split(), "--sample-prompts", "a {subject}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["0 None None", "True True"], done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("Rex: ") for line in lines) and "\r" not in done.stderr
    steps = [line for line in lines if " step " in line]
    assert [line.split(",")[0] for line in steps] == [f"Rex: step {step}/10" for step in range(1, 11)]
    assert all("loss 0" in line or "loss 1" in line for line in steps) and steps[-1].endswith(" s")


def test_bitsandbytes_not_installed(monkeypatch):
    monkeypatch.setattr(libraries, "BITSANDBYTES", "no_such_package")
    assert not libraries.bitsandbytes_installed()
    with pytest.raises(ImportError):
        libraries.import_bitsandbytes()
