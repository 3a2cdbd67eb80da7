"""README and documentation: their commands and flags exist, their Python names exist, their files are there."""

import re
import shlex

import pytest
from conftest import ROOT

from app.cli import COMMANDS, main

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]


def blocks(language):
    """The code blocks of one language in all pages."""
    found = [re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for text in TEXTS.values()]
    return [block for page in found for block in page]


def commands():
    """The distinct hra-diffusion commands of all bash blocks."""
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return sorted({part for part in parts if part.startswith("hra-diffusion ")})


@pytest.fixture(scope="module")
def help_texts():
    """The --help text of every command that the pages use."""
    return {}


@pytest.mark.parametrize("line", commands())
def test_commands_and_their_flags_exist(line, capsys, help_texts):
    words = shlex.split(line)
    assert words[1] in COMMANDS
    if words[1] not in help_texts:
        with pytest.raises(SystemExit):
            main([words[1], "--help"])
        help_texts[words[1]] = capsys.readouterr().out
    for flag in (word for word in words if word.startswith("--")):
        assert flag in help_texts[words[1]]


def test_the_flags_that_stand_for_those_of_other_trainers_exist(capsys):
    rows = TEXTS["docs/train.md"].split("## What other trainers call it")[1].splitlines()
    ours = [row.rsplit("|", 2)[1] for row in rows if row.startswith("| ") and "elsewhere" not in row]
    for command in ("train", "export", "generate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
    known = {*re.findall(r"--[\w-]+", capsys.readouterr().out)}
    assert len(ours) > 40 and {flag for cell in ours for flag in re.findall(r"--[\w-]+", cell)} <= known


def test_the_pages_show_every_command():
    assert {shlex.split(line)[1] for line in commands()} >= set(COMMANDS) - {"demo"}
    assert "make demo" in README


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make (\w+)`", "".join(TEXTS.values()))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_and_images_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", README):
        assert (ROOT / target).exists(), target


def test_python_blocks_are_valid_and_their_names_exist():
    import hra_diffusion

    for block in blocks("python"):
        compile(block, "documentation", "exec")
        for name in set(re.findall(r"\bhra\.(\w+)", block)):
            assert hasattr(hra_diffusion, name), name


def test_the_worked_example_is_a_method():
    """The method in docs/adding-a-method.md keeps the contract: activations, weight and factors agree."""
    import torch

    from hra_diffusion.adapters import registry
    from hra_diffusion.adapters.linear_map import adapted_output

    (block,) = re.findall(r"```python\n(.*?)```", TEXTS["docs/adding-a-method.md"], re.DOTALL)
    try:
        exec(compile(block, "adding-a-method.md", "exec"), {"__name__": "example"})
        method = registry.get_method("output_scale")
        adapter = method.build(method.parse({"rank": 2}), 6, 4, torch.Generator())
        with torch.no_grad():
            adapter.scale.uniform_(0.5, 2.0)
        layer, x = torch.nn.Linear(6, 4), torch.randn(3, 6)
        weight = layer.weight.detach()
        adapted = adapter.adapted_weight(weight, 0.7)
        low_rank = adapter.low_rank(weight, 0.7)
        output = adapted_output(layer, layer(x), x, adapter.own_factors(0.7).with_bias(layer.bias))
        assert torch.allclose(output, x @ adapted.T + layer.bias, atol=1e-6)
        assert torch.allclose(low_rank.scale[:, None] * (weight + low_rank.up @ low_rank.down), adapted, atol=1e-6)
    finally:
        registry._methods.pop("output_scale", None)


def test_every_promise_about_security_names_a_test_that_exists():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "app" / "web").glob("*.py"))
    named = re.findall(r"`(test_\w+)`", TEXTS["docs/security.md"])
    assert len(named) > 30 and [name for name in named if f"def {name}(" not in tests] == []


def test_the_lock_file_has_the_tested_versions_with_their_hashes():
    pins = re.compile(r"^([\w.-]+)==([\w.]+)", re.MULTILINE)
    constraints = dict(pins.findall((ROOT / "constraints.txt").read_text()))
    tested = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in constraints.items()}
    parts = re.split(r"\n(?=[a-z])", (ROOT / "requirements.lock").read_text())[1:]
    locked = dict(pins.match(part).groups() for part in parts)
    assert len(locked) > 60 and all("--hash=sha256:" in part for part in parts)
    assert {name: version for name, version in locked.items() if tested.get(name, version) != version} == {}
