"""Benchmarks: cells, interruption, tables and the report."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import stir, tiny_pipe
from PIL import Image

from app.cli import main
from app.commands import benchmark as command
from app.protocols import report, summary
from app.protocols.cells import Benchmark, Cell, Result, cells_of, read_result
from app.protocols.plan import BASE, Plan
from app.protocols.scoring import Control, Scorer
from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.errors import UserError
from hra_diffusion.evaluation.clip import Clip, default_source
from hra_diffusion.files import write_text
from hra_diffusion.generation.png import save_png
from training.data.masks import grabcut
from training.data.photo import Upright
from training.data.photo_files import mask_path
from training.runs import follow
from training.runs.queue import Queue
from training.runs.run_folder import RunError

PLAN = Plan(
    protocol="toybox", name="test", base={"preset": "quick"},
    subjects=("robot", "monkey", "octopus", "penguin", "hedgehog", "t rex"),
    variants={"lora": {"method": "lora"}, "hra": {"method": "hra"}}, seeds=(0, 1), prompts=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Benchmark:
    """A benchmark without results; its models are not loaded."""
    subjects = PLAN.load_subjects()
    output = tmp_path_factory.mktemp("outputs")
    return Benchmark(output / "benchmark" / "test", output, PLAN, subjects, tiny_pipe, Scorer(subjects, 128))


def store(benchmark: Benchmark, cell: Cell, subject: float) -> Result:
    """Write the result and the pictures of a cell with this similarity to the photos."""
    costs = {"seconds": 60.0, "megabytes": 1.0} if cell.variant != BASE else {}
    result = Result(cell, {"subject": [subject, subject], "prompt": [0.5, 0.5]}, costs, "ab" * 32)
    for number in range(2):
        save_png(
            Image.new("RGB", (64, 64), (99, 0, 0)), benchmark.folder / cell.folder / "pictures" / f"{number:02d}-0.png"
        )
    write_text(benchmark.folder / cell.folder / "cell.json", json.dumps(dataclasses.asdict(result)))
    return result


@pytest.fixture
def results(benchmark) -> list[Result]:
    """Results in which HRA is better than LoRA on every subject."""
    offsets = {BASE: 0.0, "lora": 0.3, "hra": 0.4}
    spread = {subject: 0.02 * number for number, subject in enumerate(benchmark.plan.subjects)}
    return [
        store(benchmark, cell, 0.2 + offsets[cell.variant] + spread[cell.subject] + 0.01 * cell.seed)
        for cell in cells_of(benchmark.plan)
    ]


def test_every_part_of_a_benchmark_is_balanced():
    """Seeds come one after another, and each subject's variants together, the base model first."""
    cells = list(cells_of(PLAN))
    assert len(cells) == 6 * 3 * 2 and {cell.seed for cell in cells[:18]} == {0}
    assert [cell.variant for cell in cells[:3]] == [BASE, "lora", "hra"]


def test_variations_follow_the_trained_cells():
    """Strengths at the first seed, with the LoRA of the orthogonal method; checkpoints at every seed."""
    found = list(cells_of(PLAN.model_copy(update={"strengths": (1.0, 0.5, 0.0), "checkpoints": 1})))
    assert [cell for cell in found if cell == cell.trained] == found[:36] == list(cells_of(PLAN))
    names = [cell.variation for cell in found if cell.subject == "robot" and cell.variant == "hra"]
    assert names == ["", "", "step-000040", "strength-0.50", "lora-0.50", "step-000040"]
    assert [cell.variation for cell in found if cell.exported and cell.variant == "lora"] == []
    assert len({cell.folder for cell in found}) == len(found)


def test_results_of_an_earlier_version_are_read(tmp_path):
    cell = {"subject": "robot", "variant": "hra", "seed": 1, "strength": 0.5}
    found = Cell("robot", "hra", 1, 0.5)
    assert found.folder.name == "strength-0.50"
    write_text(
        tmp_path / found.folder / "cell.json", json.dumps({"cell": cell, "figures": {"subject": [1]}, "costs": {}})
    )
    assert read_result(tmp_path, found) == Result(found, {"subject": [1.0]}, {})


def test_a_cluster_gets_the_runs_of_all_missing_cells_at_once(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(Queue, "start", lambda self: None)
    cluster = dataclasses.replace(benchmark, output=tmp_path, folder=tmp_path / "benchmark", jobs={"jobs": "ray"})
    cells = [cell for cell in cells_of(PLAN) if cell.subject == "robot"]
    cluster.queue_all(cells)
    waiting = [f"test-robot-{variant}-{seed}" for seed in (0, 1) for variant in ("lora", "hra")]
    assert Queue(tmp_path).waiting() == waiting
    assert {job.run.state.device for job in Queue(tmp_path).jobs()} == {"ray"}
    cluster.cancel_all(cells)
    assert Queue(tmp_path).waiting() == []
    cluster.queue_all(cells)
    assert Queue(tmp_path).waiting() == waiting, "they are resumed"


def test_labels_that_look_alike_have_folders_of_their_own():
    assert Cell("robot", "hra × 2", 0).folder != Cell("robot", "hra 2", 0).folder


def test_a_lost_result_is_the_only_one_that_is_missing(benchmark, results):
    assert benchmark.missing() == [] and benchmark.results() == results
    lost = results[4].cell
    (benchmark.folder / lost.folder / "cell.json").write_text("{")
    with pytest.warns(UserWarning, match="cell.json"):
        assert [result.cell for result in benchmark.results()] == [r.cell for r in results if r.cell != lost]
    assert benchmark.missing() == [lost]


def test_the_better_variant_wins_with_intervals_and_p_values(results):
    found = summary.summarize(PLAN, results, {}, {})
    assert found.winners["subject"] == "hra" and found.winners["prompt"] is None
    assert found.means["hra"]["subject"].mean == pytest.approx(0.655)
    pair = next(pair for pair in found.comparisons if pair.figure == "subject")
    assert pair.difference.mean == pytest.approx(-0.1) and pair.p_value == pytest.approx(2 / 64)
    assert found.costs["lora"]["seconds"] == 60 and "seconds" not in found.costs[BASE]
    table = summary.markdown(found)
    assert "subject: hra is clearly the best" in table and "prompt: no variant is clearly the best" in table


def test_variants_are_compared_on_the_cells_that_all_have(results):
    """LoRA lacks its worst subject; that must not make it better than HRA."""
    part = [r for r in results if (r.cell.subject, r.cell.variant) != ("monkey", "lora")]
    missing = {Cell("monkey", "lora", 0): "out of memory"}
    found = summary.summarize(PLAN, part, {}, missing)
    pair = next(pair for pair in found.comparisons if pair.figure == "subject")
    assert pair.difference.mean == pytest.approx(-0.1)
    assert "- monkey, lora, seed 0: out of memory" in summary.markdown(found)


def test_prompts_are_the_units_of_a_benchmark_of_one_subject():
    plan = PLAN.model_copy(update={"subjects": ("robot",), "pictures": 2})
    figures = {"subject": [0.1, 0.3, 0.5, 0.7], "drift": [0.2, 0.4, 0.6, 0.8]}
    values = summary.values_of(plan, [Result(Cell("robot", "lora", seed), figures, {}) for seed in (0, 1)], "lora")
    assert values["subject"] == {"prompt 0": pytest.approx([0.2, 0.2]), "prompt 1": pytest.approx([0.6, 0.6])}
    assert values["drift"] == {f"prompt {n}": [value] * 2 for n, value in enumerate(figures["drift"])}
    assert "over prompts and seeds" in summary.describe(plan)


def test_few_subjects_are_said_to_show_no_difference(results):
    plan = PLAN.model_copy(update={"subjects": PLAN.subjects[:3]})
    found = summary.summarize(plan, [r for r in results if r.cell.subject in plan.subjects], {}, {})
    assert found.winners["subject"] is None and "3 subjects can show no clear difference" in summary.markdown(found)


def test_the_csv_has_a_line_per_cell(results):
    lines = summary.as_csv(results).splitlines()
    assert len(lines) == 1 + len(results) and lines[0].startswith("subject,variant,seed,strength,")
    assert "mean subject" in lines[0] and {line.split(",")[0] for line in lines[1:]} == set(PLAN.subjects)


def test_the_report_is_one_file_with_pictures_and_no_address(benchmark, results):
    controls = {"robot": Control(0.8, 0.9, 0.97)}
    found = summary.summarize(PLAN, results, controls, {Cell("robot", "lora", 1): "out of memory"})
    html = report.render(benchmark, found, results)
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import', html)
    assert html.count("<img") == 6 * (5 + 3 * 2) and html.count("<svg") >= 3
    for text in ("hra is clearly the best", "out of memory", "ab" * 32, "a photo of a {subject}", "0.970"):
        assert text in html
    shutil.rmtree(benchmark.folder / results[1].cell.folder / "pictures")
    assert report.render(benchmark, found, results).count("<img") == html.count("<img") - 2, (
        "only the figures are known"
    )


def test_a_real_photo_reaches_the_ceiling_and_a_copy_exceeds_the_limit():
    subjects = PLAN.load_subjects()
    clip = Clip(default_source("toybox"))
    scorer = Scorer(subjects, 128, clip, embedders={"dino": clip})
    for subject in subjects.values():
        control = scorer.control(subject)
        assert control.real <= control.copy_limit < control.copied
        figures = scorer.figures(subject, scorer.photos(subject)[:2], 1, None)
        assert figures["dino"] == pytest.approx(figures["subject"])
        assert figures["copies"] == [1, 1] and min(figures["subject"]) > max(figures["shuffled"])


def test_a_copied_background_leaks_where_photos_have_masks(tmp_path):
    pytest.importorskip("cv2")
    robot, monkey = (PLAN.load_subjects()[name] for name in ("robot", "monkey"))
    photos = [Path(shutil.copy(photo, tmp_path)) for photo in robot.photos]
    subject = dataclasses.replace(robot, photos=tuple(photos))
    scorer = Scorer({"robot": subject}, 128, Clip(default_source("toybox")))
    pictures = [scorer.photos(robot)[1], scorer.photos(monkey)[1]]
    assert "leakage" not in scorer.figures(subject, pictures, 1, None)
    for photo in photos:
        with Image.open(photo) as image:
            grabcut(Upright(image.convert("RGB"), (1, 1), image.size, ""), None).save(mask_path(photo))
    found = scorer.figures(subject, pictures, 1, None)["leakage"]
    assert found[0] == pytest.approx(1, abs=1e-3) and found[1] < 0.9


@pytest.fixture(scope="module")
def varied(tmp_path_factory) -> tuple[Benchmark, list[Result]]:
    """A benchmark of one subject and a trained adapter, with its checkpoint, strengths and exported LoRA drawn."""
    folder = tmp_path_factory.mktemp("varied")
    plan = PLAN.model_copy(update={"subjects": ("robot",), "variants": {"hra": {"method": "hra"}}, "seeds": (0,),
                                   "strengths": (1.0, 0.5), "checkpoints": 1, "denoising_steps": 4})  # fmt: skip
    subjects = plan.load_subjects()
    made = Benchmark(folder, folder, plan, subjects, tiny_pipe, Scorer(subjects, 64, Clip(default_source("toybox"))))
    pipe, own = tiny_pipe(), folder / Cell("robot", "hra", 0).folder
    pipeline.attach(pipe, "hra", name="adapter")
    for strength, path in ((0.3, "checkpoints/000040.safetensors"), (1.0, "adapter.safetensors")):
        stir(attachment.adapter_parameters(pipe.unet, "adapter").values(), by=strength)
        pipeline.save(pipe, own / path, "adapter")
    return made, [made.run(cell) for cell in cells_of(plan)]


def test_variations_are_drawn_from_their_own_weights(varied):
    made, results = varied
    pictures = {result.cell.variation: made.pictures(result.cell)[0].tobytes() for result in results[1:]}
    assert list(pictures) == ["", "step-000040", "strength-0.50", "lora-0.50"] and len({*pictures.values()}) == 4
    exported = read_info(made.folder / results[1].cell.folder / "lora.safetensors")
    assert exported.method == "lora"
    assert len({result.sha256 for result in results}) == 4, "none, the finished one twice, its LoRA, the checkpoint"


def test_curves_go_through_the_base_model_and_all_variations(varied):
    made, results = varied
    found = summary.summarize(made.plan, results, {}, {})
    html = report.render(made, found, results)
    assert html.count("<polyline") == 4 and "hra by strength" in html and "training step" in html
    assert ">0.5 as LoRA</text>" in html and len(found.means) == 2
    part = [result for result in results if not result.cell.exported]
    assert report.render(made, summary.summarize(made.plan, part, {}, {}), part).count("<polyline") == 3


@pytest.fixture
def quick(tmp_path: Path) -> list[str]:
    """A benchmark of one subject and one method, trained for two steps, with pictures of four."""
    return ["benchmark", "toybox", "--quick", "--subjects", "robot", "--methods", "lora", "--training-steps", "2",
            "--prompts", "2", "--seeds", "0", "--checkpoints", "1", "--budget", "parameters", "--denoising-steps", "4",
            "--output", str(tmp_path), "--quiet"]  # fmt: skip


def test_an_interrupted_benchmark_continues_and_leaves_no_runs(tmp_path, quick, capsys):
    assert main([*quick, "--minutes", "0"]) == 1, "nothing was run"
    stored = json.loads((tmp_path / "benchmark" / "toybox-quick" / "benchmark.json").read_text())["resolved"]
    assert stored["lora"]["options"]["rank"] == 16
    assert main([*quick, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["plan"]["resolved"] == stored
    assert (
        facts["missing"] == [] and "subject right" in facts["means"]["lora"] and facts["costs"]["lora"]["seconds"] > 0
    )
    folder = tmp_path / "benchmark" / "toybox-quick"
    adapter = next(folder.rglob("adapter.safetensors"))
    before = adapter.read_bytes()
    assert (adapter.parent / "checkpoints" / "000001.safetensors").read_bytes() != before
    shutil.rmtree(next(folder.glob("cells/robot/base*")))
    assert main(quick) == 0 and adapter.read_bytes() == before
    assert Queue(tmp_path).jobs() == [] and [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == [
        "benchmark"
    ]
    assert main([*quick, "--pictures", "2"]) == 1
    assert "other settings (pictures)" in capsys.readouterr().err


def test_a_worker_that_can_not_start_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "START_SECONDS", 0.0)
    monkeypatch.setattr(Queue, "start", lambda self: None)
    queue = Queue(tmp_path)
    queue.add(PLAN.config(PLAN.load_subjects()["robot"], "lora", 0))
    with pytest.raises(RunError, match=r"worker\.log"):
        follow.wait_for(queue, "test-robot-lora-0")


def test_learning_rates_are_multiplied_at_the_ranks_of_equal_parameters(tmp_path):
    words = ["toybox", "--methods", "lora", "hra", "--budget", "parameters", "--learning-rate-factors", "1", "2"]
    _, parser = main.__globals__["load_command"]("benchmark")
    parsed = parser.parse_args([*words, "--output", str(tmp_path)])
    variants = command.given_variants(parsed)
    found = command.resolve_budget(parsed, command.make_plan("equal", parsed, variants), variants)
    hra, twice = found["hra"], found["hra × 2"]
    rank = hra["options"]["rank"]
    assert rank > 16 and hra["learning_rate"] == pytest.approx(0.7e-3 * 16 / rank)
    assert twice == hra | {"learning_rate": 2 * hra["learning_rate"]}


@pytest.mark.parametrize("option", ["--denoising-steps 0", "--pictures 99", "--checkpoints -1", "--strengths nan"])
def test_numbers_out_of_range_are_named(option, tmp_path, capsys):
    assert main(["benchmark", "toybox", *option.split(), "--dry-run", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {option.split()[0].strip('-').replace('-', '_')}")


def test_a_benchmark_without_scores_is_refused(tmp_path):
    arguments = ["benchmark", "mine", "--photos", str(tmp_path), "--class-noun", "dog", "--clip", "none"]
    for number in range(3):
        Image.new("RGB", (128, 128), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    _, parser = main.__globals__["load_command"]("benchmark")
    parsed = parser.parse_args([*arguments[1:], "--output", str(tmp_path / "out")])
    with pytest.raises(UserError, match="nothing to score with"):
        command.prepare(parsed, command.make_plan("mine", parsed, command.given_variants(parsed)), tmp_path)
