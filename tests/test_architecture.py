"""The house's rules that a machine can check: which way the imports point, what the README promises."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

FLOORS = ["hra_diffusion", "training", "app"]
"""From the ground up: a package may import those before it, never those after."""


def imported(path: Path) -> set[str]:
    """Top-level names a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_one_way(floor):
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    for path in (ROOT / floor).rglob("*.py"):
        assert not imported(path) & above, f"{path} imports from a floor above it"


def test_the_library_needs_no_trainer_and_no_web():
    for path in (ROOT / "hra_diffusion").rglob("*.py"):
        assert not imported(path) & {"accelerate", "gradio", "torchvision", "pickle"}, path


def test_nothing_is_ever_unpickled():
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            assert not re.search(r"torch\.(load|save)\(|shell=True|os\.system", path.read_text(encoding="utf-8")), path


def test_a_method_is_one_file():
    """No file but its own names a method, except the defaults, the demo and the reader of strangers' LoRAs."""
    names = {path.stem for path in (ROOT / "hra_diffusion" / "methods").glob("[a-z]*.py")}
    allowed = {"presets.py", "demo.py", "imports.py"}
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            if path.name in allowed or path.parent.name == "methods":
                continue
            strings = {
                node.value
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert strings & names <= {"hra"}, f"{path} names a method"  # "hra" is the default of --method


def test_public_functions_say_what_they_do():
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert ast.get_docstring(tree), f"{path} has no docstring"
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    expected = node.name not in ("add_arguments", "run") or path.parent.name != "commands"
                    assert not expected or ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def test_functions_are_short():
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for floor in FLOORS
        for path in (ROOT / floor).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    )
    assert lengths[len(lengths) // 2] <= 12 and lengths[-1] <= 60
