"""The study of methods: its command, results gathered from several outputs, restored cells, and the page's tables."""

import dataclasses
import json
import re
import shlex

import pytest

from app.cli import load_command
from app.commands import benchmark as commands
from app.protocols import plan as plans
from app.protocols.cells import Cell, Result, cells_of, missing_cells, read_result
from app.protocols.plan import BASE, Plan
from benchmarks import options, study, study_tables
from hra_diffusion.files import write_text

PLAN = Plan(
    protocol="toybox", name="study", base={"base": "toybox"}, subjects=("robot", "penguin"), budget="parameters",
    variants={
        "lora": {"method": "lora", "learning_rate": 2e-3}, "hra, λ = ∞": {"method": "hra", "learning_rate": 7e-4},
    },
    seeds=(0,), resolved={
        "lora": {"method": "lora", "learning_rate": 2e-3, "options": {"rank": 16}},
        "hra, λ = ∞": {"method": "hra", "learning_rate": 7e-4, "options": {"rank": 38, "orthogonality": float("inf")}},
    },
)  # fmt: skip
SHARES = {BASE: 0.0, "lora": 1.0, "hra, λ = ∞": 0.5}


def store(folder, plan, lost=()):
    """Write the plan and the finished cells of a benchmark, in which every other picture of HRA shows the subject."""
    plans.store(plan, folder)
    for cell in cells_of(plan):
        shares = {"subject right": [SHARES[cell.variant], round(SHARES[cell.variant])], "scene right": [1.0, 0.0]}
        clip = {name: [0.5, 0.25] for name in ("subject", "prompt", "shuffled")}
        costs = {"seconds per picture": 1.5} | ({"parameters": 788480, "seconds": 60.0} if cell.variant != BASE else {})
        if cell not in lost:
            write_text(
                folder / cell.folder / "cell.json", json.dumps(dataclasses.asdict(Result(cell, shares | clip, costs)))
            )
    return folder


@pytest.fixture
def gathered(tmp_path):
    """The results of two outputs, a seed each. At seed 1 the last cell, HRA's of the penguin, is not finished."""
    second = PLAN.model_copy(update={"seeds": (1,)})
    folders = [store(tmp_path / "0", PLAN), store(tmp_path / "1", second, lost=[Cell("penguin", "hra, λ = ∞", 1)])]
    study.gather("study", folders, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", study.STUDIES)
def test_the_commands_are_valid_and_are_those_of_the_page(name, tmp_path, monkeypatch):
    monkeypatch.chdir(options.RESULTS.parent.parent)
    words = study.command(name, [0, 1], tmp_path, 60)
    parsed = load_command("benchmark")[1].parse_args(words[1:])
    plan = commands.make_plan(name, parsed, commands.given_variants(parsed))
    variants, budget = {"study": (10, "parameters"), "rates": (16, "parameters"), "rank": (4, "steps")}[name]
    assert (plan.seeds, plan.budget, len(plan.variants)) == ((0, 1), budget, variants)
    page = study_tables.PAGE.read_text(encoding="utf-8").replace("\\\n", "")
    shown = [shlex.split(block) for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)]
    assert any(
        block[:2] == ["hra-diffusion", "benchmark"] and {*study.STUDIES[name], name} <= {*block} for block in shown
    )


def test_seeds_of_several_outputs_are_joined_and_pairs_that_lack_a_variant_left_out(gathered):
    data = json.loads((gathered / "study.json").read_text())
    assert data["plan"]["seeds"] == [0, 1]
    assert [cell["variant"] for cell in data["missing"]] == ["hra, λ = ∞"]
    table = study_tables.study_part(data)
    assert "3 of 4 pairs" in table and "| hra, λ = ∞ | 38 | 788,480 | 0.0007 | 60 |" in table
    assert "| hra, λ = ∞ | -0.750 (-0.750 to -0.750), p 0.5 |" in table, "0.25 against 1; two subjects are too few"
    assert "counts as a copy for 2 of 2 subjects" in table


def test_outputs_of_other_subjects_are_joined(gathered, tmp_path):
    other = store(tmp_path / "other", PLAN.model_copy(update={"subjects": ("octopus",)}))
    study.gather("study", [other], gathered)
    data = json.loads((gathered / "study.json").read_text())
    assert data["plan"]["subjects"] == ["robot", "penguin", "octopus"]
    assert "4 of 6 pairs" in study_tables.study_part(data) and len(data["missing"]) == 1 + 3


def test_other_settings_are_not_joined(gathered, tmp_path):
    other = store(tmp_path / "other", PLAN.model_copy(update={"prompts": 3}))
    with pytest.raises(SystemExit, match=r"other settings.*: prompts"):
        study.gather("study", [other], gathered)


def test_a_new_folder_continues_from_the_stored_cells(gathered, tmp_path):
    folder, plan = tmp_path / "new", PLAN.model_copy(update={"seeds": (0, 1)})
    study.restore("study", folder, gathered)
    lost = Cell("penguin", "hra, λ = ∞", 1)
    assert missing_cells(plan, folder) == [Cell("penguin", BASE, 1), lost], "which needs the base model's pictures"
    before = (gathered / "study.csv").read_text()
    restored = read_result(folder, Cell("robot", "hra, λ = ∞", 0))
    assert restored.figures["subject right"] == [0.25] and restored.costs["parameters"] == 788480
    plans.store(plan, folder)
    study.gather("study", [folder], gathered)
    assert (gathered / "study.csv").read_text() == before


def test_the_page_is_up_to_date():
    text = study_tables.PAGE.read_text(encoding="utf-8")
    assert study_tables.page(text) == text
    assert (options.RESULTS / "rates.json").exists() == study_tables.PLOT.exists()


def test_without_results_nothing_is_claimed(tmp_path):
    text = study_tables.page(study_tables.PAGE.read_text(encoding="utf-8"), tmp_path)
    assert text.count("Not measured yet.") == 3


def test_rates_have_a_table_and_curves():
    variants = {
        f"{method}{suffix}": {"method": method, "learning_rate": rate * factor}
        for method, rate in (("lora", 2e-3), ("hra", 7e-4))
        for suffix, factor in ((" × 0.5", 0.5), ("", 1.0), (" × 2", 2.0))
    }
    half, whole = ({"mean": value, "low": None, "high": None} for value in (0.5, 1.0))
    means = {label: {"subject right": half, "scene right": whole} for label in variants}
    data = {"plan": {"variants": variants, "resolved": None, "subjects": ["monkey"], "seeds": [0]}, "means": means}
    assert "| hra | 0.50 / 1.00 (0.00035) | 0.50 / 1.00 (0.0007) | 0.50 / 1.00 (0.0014) |" in study_tables.rates_part(
        data
    )
    plot = study_tables.rates_plot(data)
    assert plot.count("<polyline") == 2 and ">hra</text>" in plot
