"""The scoring of HRA's released code, by random models."""

import pytest
from conftest import random_images, tiny_clip
from PIL import Image
from transformers import ViTConfig, ViTModel

from app.cli import main
from app.commands import benchmark as command
from app.protocols import summary
from app.protocols.cells import Cell, Result
from app.protocols.plan import BASE, TRIGGER, Plan
from app.protocols.released import RELEASED, SCORINGS, STRIPPED, TRIGGER_KEPT, ReleasedScorer, best_of_checkpoints
from app.protocols.subjects import Prompt, Subject
from hra_diffusion.errors import UserError
from hra_diffusion.evaluation import lpips
from hra_diffusion.evaluation.clip import Clip
from hra_diffusion.evaluation.preprocessing import to_pixels


class PixelDistance:
    """In place of LPIPS, whose weights are a package's: the mean distance of the pixels."""

    def between(self, images, others):
        first, second = (to_pixels(list(part)) for part in (images, others))
        return (first[:, None] - second[None]).abs().mean((2, 3, 4))


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    """A teapot with photos that are not square; the released code scores its second prompt against another text."""
    folder = tmp_path_factory.mktemp("photos")
    photos = [folder / f"{number}.png" for number in range(2)]
    for path, image in zip(photos, random_images(2), strict=True):
        image.resize((96, 64)).save(path)
    prompts = Prompt("a {subject}"), Prompt("a {subject} on a rug", released="a {subject} wearing a hat")
    return Subject("teapot", "teapot", tuple(photos), tuple(photos), prompts)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> ReleasedScorer:
    clip = Clip(tiny_clip(tmp_path_factory.mktemp("clip")))
    return ReleasedScorer(clip, clip, PixelDistance())


def test_texts_keep_the_trigger_and_objects_get_those_of_live_subjects(subject, scorer):
    images = random_images(4)
    found = scorer.figures(subject, images, pictures=2)
    pictures = scorer.clip.embed_images(images)

    def similarities(*texts):
        embedded = scorer.clip.embed_texts([text for text in texts for _ in range(2)])
        return pytest.approx((pictures * embedded).sum(1).tolist(), abs=1e-6)

    assert found[RELEASED[2]] == similarities(f"a {TRIGGER} teapot", f"a {TRIGGER} teapot wearing a hat")
    assert found[TRIGGER_KEPT] == similarities(f"a {TRIGGER} teapot", f"a {TRIGGER} teapot on a rug")
    assert found[STRIPPED] == similarities("a teapot", "a teapot on a rug")


def test_photos_are_compared_whole_with_every_picture(subject, scorer):
    images = random_images(4)
    found = scorer.figures(subject, images, pictures=2)
    photos = [Image.open(path) for path in subject.photos]
    similarity = scorer.clip.embed_images(images) @ scorer.clip.embed_images(photos).T
    assert found[RELEASED[0]] == found[RELEASED[1]] == pytest.approx(similarity.mean(1).tolist(), abs=1e-6)
    square = [image.resize((512, 512), Image.Resampling.BILINEAR) for image in (*photos, images[0])]
    distances = [(to_pixels([photo]) - to_pixels(square[-1:])).abs().mean().item() for photo in square[:-1]]
    assert found[RELEASED[3]][0] == pytest.approx(sum(distances) / 2)


@pytest.fixture
def folders(tmp_path) -> dict[str, str]:
    """Folders of a tiny DINO and a tiny CLIP."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, patch_size=32), add_pooling_layer=False).save_pretrained(tmp_path / "tiny-vit")
    return {"dino": str(tmp_path / "tiny-vit"), "clip-l14": str(tiny_clip(tmp_path / "tiny-clip"))}


def test_the_models_of_the_released_scoring_come_from_given_folders(subject, folders):
    released = ReleasedScorer.load(PixelDistance(), folders)
    assert (released.dino.label, released.clip.label) == ("DINO (tiny-vit)", "CLIP (tiny-clip)")
    assert len(released.figures(subject, random_images(4), pictures=2)["released dino"]) == 4


def test_the_models_of_metrics_come_from_given_folders(tmp_path, folders, monkeypatch):
    _, parser = main.__globals__["load_command"]("benchmark")
    given = [f"{name}={folder}" for name, folder in folders.items()]
    arguments = ["toybox", "--pictures", "2", "--output", str(tmp_path / "outputs"), "--metrics", *given]
    parsed = parser.parse_args(arguments)
    scorer = command.prepare(parsed, command.make_plan("test", parsed, command.given_variants(parsed)), tmp_path).scorer
    assert [model.label for model in scorer.embedders.values()] == ["DINO (tiny-vit)", "CLIP (tiny-clip)"]
    monkeypatch.setattr(lpips, "load_packaged", lambda *package: {})
    parsed = parser.parse_args([*arguments, f"lpips={tmp_path / 'vgg'}"])
    with pytest.raises(UserError, match="vgg can't be used for LPIPS"):
        command.prepare(parsed, command.make_plan("test", parsed, command.given_variants(parsed)), tmp_path)


def figures(*prompts: tuple[float, float, float, float]) -> dict[str, list[float]]:
    """Figures of a checkpoint from those of its prompts, with two pictures each that differ by 0.2."""
    return {
        name: [value + sign * 0.1 for value in values for sign in (1, -1)]
        for name, values in zip(RELEASED, zip(*prompts, strict=True), strict=True)
    }


def test_the_best_checkpoint_of_a_prompt_has_the_largest_sum_of_figures_by_their_range():
    """Prompt 1: DINO's range is small, so that its lead of 0.01 counts as much as the whole range of CLIP-I."""
    candidates = [
        figures((0.5, 0.6, 0.3, 0.7), (0.51, 0.60, 0.30, 0.70)),
        figures((0.6, 0.7, 0.2, 0.7), (0.50, 0.80, 0.29, 0.70)),
        figures((0.4, 0.5, 0.1, 0.6), (0.50, 0.61, 0.20, 0.70)),
    ]
    found = best_of_checkpoints(candidates, 2)
    # prompt 0: 2.5 + 3 + 1.5 + 7, 3 + 3.5 + 1 + 7, 2 + 2.5 + 0.5 + 6
    # prompt 1: 51 + 3 + 3, 50 + 4 + 2.9, 50 + 3.05 + 2; LPIPS is the same for all
    assert found == {name: pytest.approx([*candidates[1][name][:2], *candidates[0][name][2:]]) for name in RELEASED}


def test_the_table_goes_from_the_corrected_scoring_to_the_released_one():
    plan = Plan(protocol="dreambooth", name="test", base={}, subjects=("dog", "teapot"), seeds=(0,), pictures=2,
                variants={"hra": {"method": "hra"}}, checkpoints=1, released=True)  # fmt: skip
    worse, better = (figures((value, value, value, value)) for value in (0.2, 0.4))
    corrected = {"dino": [0.9, 0.9], "subject": [0.8, 0.8], "prompt": [0.3, 0.3], "lpips": [0.7]}
    more = {STRIPPED: [0.1, 0.1], TRIGGER_KEPT: [0.15, 0.15]}
    results = [
        Result(Cell(subject, variant, 0, step=step), better if step else worse | corrected | more, {})
        for subject in plan.subjects
        for variant, step in ((BASE, None), ("hra", None), ("hra", 40))
    ]  # fmt: skip
    rows = summary.scored_as(plan, results)
    assert [row.scoring for row in rows] == 2 * [scoring.title for scoring in SCORINGS]
    values = [[round(value.mean, 2) for value in row.values] for row in rows if row.variant == "hra"]
    assert values == [
        [0.9, 0.8, 0.3, 0.7], [0.2, 0.2, 0.1, 0.2], [0.2, 0.2, 0.15, 0.2], [0.2, 0.2, 0.2, 0.2], [0.4, 0.4, 0.4, 0.4],
    ]  # fmt: skip
    found = summary.summarize(plan, results, {}, {})
    assert "| hra | + best checkpoint" in summary.markdown(found)
    assert found.means["hra"]["dino"].mean == pytest.approx(0.9), "of the finished adapter"
    assert summary.scored_as(plan, [Result(Cell("dog", "hra", 0), corrected, {})]) == []
