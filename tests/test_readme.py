"""The README's promises: its commands exist, its code runs, its files are there."""

import re
import shlex

import pytest
from conftest import ROOT

from app.cli import COMMANDS, main

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def commands():
    text = "".join(body for language, body in BLOCKS if language == "bash").replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in text.splitlines() if line.startswith("hra-diffusion")]


@pytest.mark.parametrize("line", commands())
def test_commands_and_their_flags_exist(line, capsys):
    words = shlex.split(line)
    assert words[1] in COMMANDS
    with pytest.raises(SystemExit):
        main([words[1], "--help"])
    help_text = capsys.readouterr().out
    for flag in (word for word in words if word.startswith("--")):
        assert flag in help_text


def test_there_are_commands_to_check():
    assert {shlex.split(line)[1] for line in commands()} == set(COMMANDS)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_python_names_exist():
    import hra_diffusion

    code = "".join(body for language, body in BLOCKS if language == "python")
    for name in set(re.findall(r"\bhra\.(\w+)", code)):
        assert hasattr(hra_diffusion, name), name
