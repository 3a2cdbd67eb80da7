"""Rules of the architecture that a machine can check: the direction of imports, no circles, documented functions."""

import ast
import graphlib
import re
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = ("hra_diffusion", "training", "app")
"""The installed packages, lowest first: a package imports only from those before it."""
DEVELOPMENT = ("toybox", "benchmarks", "tests", "examples")
"""What the installed packages never import."""
LAYERS = (
    {
        "allocator",
        "errors",
        "files",
        "hub",
        "libraries",
        "locks",
        "names",
        "patterns",
        "processes",
        "records",
        "threads",
    },
    {"yaml_text"},
    {"adapters"},
    {"models"},
    {"pipeline"},
    {"generation"},
    {"evaluation"},
    {"comparison"},
    {"interop", "library", "trash"},
)
"""The parts of hra_diffusion, lowest first: a part imports only from its own layer and those below."""


def files(*packages):
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> frozenset[str]:
    return frozenset(module_of(path) for path in files(*PACKAGES, "toybox", "benchmarks"))


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, also inside functions; imports for type checkers alone do not count."""
    skipped = {
        child
        for node in ast.walk(tree(path))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree(path)):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(path: Path) -> set[str]:
    """The modules of this project that a file imports."""
    found = set()
    for name in imported(path):
        module = name if name in modules() else name.rpartition(".")[0]
        if module in modules():
            found.add(module)
    return found - {module_of(path)}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package):
    above = {*PACKAGES[PACKAGES.index(package) + 1 :], *DEVELOPMENT}
    for path in files(package):
        assert not {name.split(".")[0] for name in imported(path)} & above, f"{path} imports from a package above it"


def test_no_file_imports_itself_through_others():
    graph = {module_of(path): imported_modules(path) for path in files(*PACKAGES, "toybox", "benchmarks")}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"files import each other in a circle: {' ← '.join(error.args[1])}")


def test_parts_of_the_library_import_in_one_direction():
    level = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    for path in files("hra_diffusion"):
        part = path.relative_to(ROOT / "hra_diffusion").parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for module in imported_modules(path):
            other = module.split(".")[1] if module.startswith("hra_diffusion.") else None
            assert other is None or level[other] <= level[part], f"{path} imports {module} from a layer above it"


def test_the_library_needs_no_trainer_and_no_web():
    for path in files("hra_diffusion"):
        assert not {name.split(".")[0] for name in imported(path)} & {
            "accelerate",
            "gradio",
            "torchvision",
            "pickle",
        }, path


def test_nothing_is_ever_unpickled():
    """But tensors, and nothing else, from files of installed packages, in one place."""
    for path in files(*PACKAGES):
        text = path.read_text(encoding="utf-8")
        if path.name == "packaged_weights.py":
            text = re.sub(r"torch\.load\(.*, weights_only=True\)", "", text)
        assert not re.search(r"torch\.(load|save)\(|shell=True|os\.system", text), path


def test_a_method_is_one_file():
    """No file but its own names a method, except the defaults, the demo and the import of other programs' LoRAs."""
    names = {path.stem for path in (ROOT / "hra_diffusion" / "adapters" / "methods").glob("[a-z]*.py")}
    assert {"lora", "hra"} <= names
    allowed = {"presets.py", "demo.py", "imports.py"}
    for path in files(*PACKAGES):
        if path.name in allowed or path.parent.name == "methods":
            continue
        strings = {n.value for n in ast.walk(tree(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        assert strings & names <= {"hra"}, f"{path} names a method"  # "hra" is the default of --method


def test_public_functions_are_documented():
    for path in files(*PACKAGES):
        assert ast.get_docstring(tree(path)), f"{path} has no docstring"
        for node in tree(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                expected = node.name not in ("add_arguments", "run") or path.parent.name != "commands"
                assert not expected or ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def test_functions_are_short():
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for path in files(*PACKAGES)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    )
    assert lengths[len(lengths) // 2] <= 12 and lengths[-1] <= 60
