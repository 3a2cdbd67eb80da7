"""Plans of benchmarks: variants, budgets, prompts."""

import json
from pathlib import Path

import pytest
from conftest import tiny_pipe

from app.protocols import plan as plans
from app.protocols.plan import Plan
from app.protocols.subjects import toybox_subjects
from hra_diffusion.errors import UserError
from training import config as configs
from training import rank_matching
from training.runs.calibration import Calibration

VARIANTS = {"lora": {"method": "lora"}, "hra": {"method": "hra"}, "hoft": {"method": "hoft"}}


def make(**changes) -> Plan:
    values = {"protocol": "toybox", "name": "test", "base": {"preset": "quick"}, "subjects": ["robot"],
              "variants": VARIANTS, "seeds": [0]}  # fmt: skip
    return Plan.model_validate(values | changes)


def test_every_variant_trains_on_the_same_photos_with_its_own_learning_rate():
    plan = make()
    robot = plan.load_subjects()["robot"]
    lora, hra = (plan.config(robot, variant, 3) for variant in ("lora", "hra"))
    assert lora.photos == hra.photos == robot.photos and lora.seed == hra.seed == 3
    assert (lora.learning_rate, hra.learning_rate) == (2e-3, 0.7e-3) and lora.name != hra.name


def test_fewer_prompts_are_taken_evenly_from_the_list():
    whole, few = make().load_subjects()["robot"], make(prompts=5).load_subjects()["robot"]
    assert few.prompts == whole.prompts[::5] and few.photos == whole.photos


def test_learning_rates_are_multiplied():
    found = plans.with_rate_factors({"lora": {"method": "lora"}}, {}, [0.5, 1])
    rate = configs.parse({"name": "a", "photos": ["."], "class_noun": "b", "method": "lora"}).learning_rate
    assert [(label, changes["learning_rate"]) for label, changes in found.items()] == [
        ("lora × 0.5", rate / 2), ("lora", rate),
    ]  # fmt: skip


def test_ranks_give_equal_parameters():
    pipe = tiny_pipe()
    found = plans.equal_parameters(VARIANTS, {}, pipe)
    counts = []
    for changes in found.values():
        config = configs.parse({"name": "a", "photos": ["."], "class_noun": "b", **changes})
        counts.append(
            rank_matching.count_parameters(config.method, config.options, rank_matching.layer_shapes(pipe, config))
        )
    assert max(counts) / min(counts) < 1.25 and found["lora"]["options"]["rank"] == 16


def test_steps_give_equal_seconds():
    found = plans.equal_seconds(
        {"lora": {"method": "lora", "steps": 100}, "hoft": {"method": "hoft"}},
        {}, {"lora": Calibration(step=0.5), "hoft": Calibration(step=1.0)},
    )  # fmt: skip
    assert (found["lora"]["steps"], found["hoft"]["steps"]) == (100, 50)


def test_checkpoints_are_evenly_spaced_before_the_last_step():
    plan = make(
        checkpoints=3, base={"preset": "quick", "steps": 100}, variants=VARIANTS | {"x": {"method": "lora", "steps": 3}}
    )
    robot = plan.load_subjects()["robot"]
    assert [*plan.checkpoint_steps("lora")] == [25, 50, 75] and plan.config(robot, "lora", 0).checkpoint_every == 25
    assert [*plan.checkpoint_steps("x")] == [1, 2], "as many as there are"
    assert not make().checkpoint_steps("lora")
    assert make().config(robot, "lora", 0).checkpoint_every == 40, "the preset's"


def test_a_stored_plan_keeps_its_equal_budget_and_one_of_an_earlier_version_is_read(tmp_path: Path):
    plan = make(budget="seconds")
    earlier = plan.model_dump(mode="json", exclude={"checkpoints", "released", "resolved"})
    (tmp_path / "benchmark.json").write_text(json.dumps(earlier))
    assert plans.as_stored(plan, tmp_path) == plan
    resolved = {label: {**changes, "steps": 7} for label, changes in VARIANTS.items()}
    (tmp_path / "benchmark.json").write_text(plan.model_copy(update={"resolved": resolved}).model_dump_json())
    again = plans.as_stored(plan, tmp_path)
    assert again.config(again.load_subjects()["robot"], "hra", 0).steps == 7
    with pytest.raises(UserError, match=r"other settings \(seeds\)"):
        plans.as_stored(make(budget="seconds", seeds=[1]), tmp_path)


def test_measures_that_do_not_suit_the_plan_are_refused():
    with pytest.raises(UserError, match="--pictures 2"):
        plans.check(make(metrics=["lpips"]))
    with pytest.raises(UserError, match="protocol dreambooth"):
        plans.check(make(released=True))


def test_variants_of_a_file_join_the_methods(tmp_path: Path):
    file = tmp_path / "variants.yaml"
    file.write_text("hra exact:\n  method: hra\n  options: {orthogonality: .inf}\n")
    assert list(plans.read_variants(["lora"], file)) == ["lora", "hra exact"]
    plans.check(make(variants=plans.read_variants(["lora"], file)))


def test_a_hard_constraint_is_stored_and_continued(tmp_path: Path):
    plan = make(variants={"hra exact": {"method": "hra", "options": {"orthogonality": float("inf")}}})
    plans.store(plan, tmp_path)
    again = plans.as_stored(plan, tmp_path)
    robot = plan.load_subjects()["robot"]
    assert again.config(robot, "hra exact", 0).options == plan.config(robot, "hra exact", 0).options


def test_the_model_of_a_metric_is_a_folder_or_a_hub_id(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("vit").mkdir()
    found = plans.read_metrics(["lpips", "dino=vit", "clip-l14=owner/clip", "lpips"])
    assert found == (("lpips", "dino", "clip-l14"), {"dino": str(tmp_path / "vit"), "clip-l14": "owner/clip"})
    with pytest.raises(UserError, match=r"no metric 'dreamsim'; choose among dino, .*lpips"):
        plans.read_metrics(["dreamsim=vit"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora: {method: lora}", "exists already"),
        ("base: {method: lora}", "exists already"),
        ("x: 3", "needs lines like"),
        ("x: {rank: 3}", "needs lines like"),
    ],
)
def test_invalid_variants_are_refused(tmp_path: Path, text, message):
    file = tmp_path / "variants.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        plans.read_variants(["lora"], file)


def test_errors_name_the_variant():
    with pytest.raises(UserError, match="variant 'x'"):
        plans.check(make(variants={"x": {"method": "hra", "options": {"rank": -1}}}))
    with pytest.raises(UserError, match=r"no subject 'dragon'.*octopus"):
        plans.choose_subjects(toybox_subjects(), ["dragon"])
    with pytest.raises(UserError, match="--data"):
        plans.find_subjects("dreambooth", None, [], "")
    with pytest.raises(UserError, match="--photos"):
        plans.find_subjects("mine", None, [], "dog")
