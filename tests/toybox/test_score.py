"""Tests of the score: prompts, shares and table."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hra_diffusion.generation.requests import Request
from toybox import score as scoring
from toybox.autoencoder import new_autoencoder
from toybox.captions import caption_of
from toybox.judge import ATTRIBUTE_NAMES, OBJECT_NAMES, SCENE_NAMES, label_targets
from toybox.attributes import ATTRIBUTES
from toybox.scenes import SCENES
from toybox.score import Score, Share, compare, load_photos, load_score, save_score, score_base, table
from toybox.shards import render_held_out
from toybox.labels import Label, UNSEEN
from toybox.objects import OBJECTS

BASE_SCORE = Score(
    things=Share(0.75, 0.7, 0.8, 0.95),
    scenes=Share(0.9, 0.88, 0.92, 1.0),
    looks=Share(0.5, 0.4, 0.6, 0.9),
    dressed=Share(0.3, 0.2, 0.4, 0.8),
    seconds=0.61,
    decibels=25.04,
    photo_decibels=21.5,
    guidance_scale=3.0,
    steps=25,
    seeds=4,
)


class ReadingJudge(nn.Module):
    """Reads its answers from a picture's first two pixels: the numbers of a named thing, a scene and a look."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, signal: Tensor) -> list[Tensor]:
        """Logits of things, scenes and looks."""
        first, second = ((signal[:, :, 0, :2] + 1) * 127.5).round().long().unbind(-1)
        numbers = first + 256 * second
        classes = (len(OBJECT_NAMES), len(SCENE_NAMES), len(ATTRIBUTE_NAMES))
        return [nn.functional.one_hot(number, count) for number, count in zip(numbers.T, classes, strict=True)]


def picture_of(label: Label) -> Image.Image:
    """What ReadingJudge recognises as the label."""
    numbers = label_targets([label])[0].tolist()
    picture = Image.new("RGB", (128, 128), tuple(number % 256 for number in numbers))
    picture.putpixel((1, 0), tuple(number // 256 for number in numbers))
    return picture


FOX, OWL = Label("fox", "in the snow", "red"), Label("owl", "on the beach", "wet")


def test_shares_are_counted_over_seeds() -> None:
    """Mean, worst and best seed, and the renders' share beside them."""
    half_fox = Label("fox", "on the beach", "red")
    drawn = [[picture_of(FOX), picture_of(OWL)], [picture_of(FOX), picture_of(half_fox)]]
    rendered = [[picture_of(FOX), picture_of(OWL)], [picture_of(OWL), picture_of(OWL)]]
    things, scenes, looks = compare(ReadingJudge(), [FOX, OWL], drawn, rendered)  # pyright: ignore[reportArgumentType]
    assert things == looks == Share(0.75, 0.5, 1.0, 0.75)
    assert scenes == Share(1.0, 1.0, 1.0, 0.75)


def test_score_counts_correct_images(sprites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a base model that fails on foxes and, for one seed, on looks; the contact sheet is written."""
    asked: dict[str, Label] = {}
    requests_seen: list[Request] = []

    def describe(label: Label) -> str:
        asked[caption_of(label)] = label
        return caption_of(label)

    def draw(pipe: object, requests: Sequence[Request], settings: object, batch: int = 8) -> list[Image.Image]:
        requests_seen.extend(requests)
        labels = [asked.get(request.prompt, FOX) for request in requests]
        naked = requests[0].seed > 0
        return [picture_of(Label(label.object, label.scene, "" if naked else label.attribute)) for label in labels]

    held_out = render_held_out(sprites).values
    monkeypatch.setattr(scoring, "render_held_out", lambda _: SimpleNamespace(values=held_out[:2]))
    monkeypatch.setattr(scoring, "caption_of", describe)
    monkeypatch.setattr(scoring, "generate_batch", draw)
    monkeypatch.setattr(scoring, "render_image", lambda _, label, rng: picture_of(label))
    monkeypatch.setattr(
        scoring, "load_base", lambda _: SimpleNamespace(unet=nn.Linear(1, 1), vae=new_autoencoder(held_out))
    )
    score = score_base(tmp_path, ReadingJudge(), sprites, None, seeds=2, sheet=tmp_path / "sheet.png")  # pyright: ignore[reportArgumentType]

    assert score.things == score.scenes == Share(1.0, 1.0, 1.0, 1.0)
    assert score.looks == Share(0.5, 0.0, 1.0, 1.0)
    assert score.dressed == Share(1.0, 1.0, 1.0, 1.0)
    assert score.photo_decibels is None
    assert 0 < score.decibels < 40
    assert (score.seeds, score.steps, score.guidance_scale) == (2, 25, 3.0)
    questions = list(asked.values())
    assert sum(not label.attribute for label in questions) == 200
    assert sum(bool(label.attribute) for label in questions) == 100
    assert len({request.seed for request in requests_seen[:600]}) == 600
    assert Image.open(tmp_path / "sheet.png").size == (20 * 130 - 2, 15 * 130 - 2)


def test_scored_labels_are_fixed_and_of_known_things() -> None:
    """Things in all scenes; no colour look on a background of that colour."""
    rng = scoring.np.random.default_rng
    dressed = scoring.sample_attribute_labels(rng(0), 100)
    assert dressed == scoring.sample_attribute_labels(rng(0), 100)
    assert len(UNSEEN) == 200
    assert {name for name, _ in UNSEEN} | {label.object for label in dressed} <= {thing.name for thing in OBJECTS}
    assert {scene for _, scene in UNSEEN} == set(SCENES)
    assert {label.attribute for label in dressed} == set(ATTRIBUTES)
    labels = scoring.sample_attribute_labels(rng(1), 1000)
    assert not any(label.attribute == "red" and "red" in label.scene for label in labels)


def test_photos_are_cut_to_their_middle(tmp_path: Path) -> None:
    """Also in folders of folders; other files are left alone."""
    photo = Image.new("RGB", (400, 200), "red")
    photo.paste("blue", (100, 0, 300, 200))
    (tmp_path / "dog").mkdir()
    photo.save(tmp_path / "dog" / "1.png")
    (tmp_path / "notes.txt").write_text("not a photo")
    photos = load_photos(tmp_path)
    assert photos.shape == (1, 128, 128, 3)
    assert (photos[:, :, 2:-2] == torch.tensor([0, 0, 255], dtype=torch.uint8)).all()
    with pytest.raises(FileNotFoundError, match="no photos"):
        load_photos(tmp_path / "nothing")


def test_a_score_is_kept(tmp_path: Path) -> None:
    """As JSON, and read again as it was."""
    save_score(BASE_SCORE, tmp_path / "score.json")
    assert load_score(tmp_path / "score.json") == BASE_SCORE


def test_table_shows_figures_ranges_ceilings_and_targets() -> None:
    """One row each; photos only if there are any."""
    rows = table(BASE_SCORE, {"things": 0.7, "seconds": 1.0}).splitlines()
    assert "| Thing right | 75.0% | 70.0%–80.0% | 95.0% | ≥ 70% |" in rows
    assert "| Look right | 50.0% | 40.0%–60.0% | 90.0% |  |" in rows
    assert "| Thing right in that look | 30.0% | 20.0%–40.0% | 80.0% |  |" in rows
    assert "| One picture, 25 steps | 0.61 s |  |  | ≤ 1.00 s |" in rows
    assert any("photos" in row and "21.5 dB" in row for row in rows)
    assert {row.count("|") for row in rows} == {6}
