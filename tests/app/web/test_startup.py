"""What the page needs before it can show itself."""

import subprocess
import sys

from conftest import ROOT


def test_the_page_is_built_before_the_heavy_libraries_are_imported():
    code = (
        "import sys, pathlib; from app.web import server; server.prepare_surroundings(pathlib.Path('outputs'))\n"
        "from app.web.blocks import build\n"
        "from app.web.context import AppContext; from app.inference_session import InferenceSession\n"
        "build(AppContext(pathlib.Path('outputs'), InferenceSession('toybox'), ('toybox',)))\n"
        "print(sorted({'diffusers', 'transformers', 'accelerate', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_no_commands_help_waits_for_the_heavy_libraries():
    code = (
        "import argparse, importlib, keyword, sys; from app.cli import COMMANDS\n"
        "modules = [f'app.commands.{name}' + '_' * keyword.iskeyword(name) for name in COMMANDS]\n"
        "for name in modules: importlib.import_module(name).add_arguments(argparse.ArgumentParser())\n"
        "print(sorted({'diffusers', 'transformers', 'accelerate', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_who_draws_while_the_page_warms_up_waits_for_the_libraries():
    """Two threads that import transformers at the same time see it half made."""
    code = (
        "import threading; from app.web.server import _warm; from app.inference_session import InferenceSession\n"
        "session = InferenceSession('toybox')\n"
        "warming = threading.Thread(target=_warm, args=(session,)); warming.start()\n"
        "print(type(session.pipe).__name__); warming.join()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "StableDiffusionPipeline", done.stderr
