"""Starting the page and the command line without the heavy libraries."""

import subprocess
import sys

from conftest import ROOT


def test_help_and_building_the_page_import_no_heavy_library():
    code = (
        "import pathlib, sys; from app.cli import COMMANDS, load_command\n"
        "heavy = {'diffusers', 'transformers', 'accelerate', 'peft'}\n"
        "for name in COMMANDS: load_command(name)\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "from app.web import server; server.prepare_environment(pathlib.Path('outputs'))\n"
        "from app.web.blocks import build\n"
        "from app.web.context import AppContext; from app.inference_session import InferenceSession\n"
        "build(AppContext(pathlib.Path('outputs'), InferenceSession('toybox'), ['toybox']))\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_generating_during_the_start_waits_for_the_libraries():
    """Two threads that import transformers at the same time see it partly initialized."""
    code = (
        "from hra_diffusion.libraries import BITSANDBYTES, PEFT, hide; hide(BITSANDBYTES, PEFT)\n"
        "import threading; from app.web.server import _warm; from app.inference_session import InferenceSession\n"
        "session = InferenceSession('toybox')\n"
        "warming = threading.Thread(target=_warm, args=(session,)); warming.start()\n"
        "print(type(session.pipe).__name__); warming.join()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "StableDiffusionPipeline", done.stderr
