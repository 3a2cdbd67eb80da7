"""Tests of scoring: labels, shares, files and table."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hra_diffusion.generation.requests import Request
from toybox import scoring
from toybox.attributes import ATTRIBUTES
from toybox.autoencoder import new_autoencoder
from toybox.captions import caption_of
from toybox.judge import ATTRIBUTE_NAMES, OBJECT_NAMES, SCENE_NAMES, label_targets
from toybox.labels import UNSEEN, Label
from toybox.objects import OBJECTS
from toybox.scenes import SCENES
from toybox.score import Score, Share, load_score, save_score, score_table
from toybox.scoring import compare, load_photos, score_base
from toybox.shards import render_held_out

BASE_SCORE = Score(
    objects=Share(0.75, 0.7, 0.8, 0.95),
    scenes=Share(0.9, 0.88, 0.92, 1.0),
    attributes=Share(0.5, 0.4, 0.6, 0.9),
    objects_with_attribute=Share(0.3, 0.2, 0.4, 0.8),
    seconds=0.61,
    psnr=25.04,
    photo_psnr=21.5,
    guidance_scale=3.0,
    steps=25,
    seeds=4,
)


class ReadingJudge(nn.Module):
    """Reads the class indices of object, scene and attribute from the first two pixels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return logits of objects, scenes and attributes."""
        first, second = ((pixels[:, :, 0, :2] + 1) * 127.5).round().long().unbind(-1)
        numbers = first + 256 * second
        classes = (len(OBJECT_NAMES), len(SCENE_NAMES), len(ATTRIBUTE_NAMES))
        return [nn.functional.one_hot(number, count) for number, count in zip(numbers.T, classes, strict=True)]


def image_of(label: Label) -> Image.Image:
    """Return an image that ReadingJudge classifies as the label."""
    numbers = label_targets([label])[0].tolist()
    image = Image.new("RGB", (128, 128), tuple(number % 256 for number in numbers))
    image.putpixel((1, 0), tuple(number // 256 for number in numbers))
    return image


FOX, OWL = Label("fox", "in the snow", "red"), Label("owl", "on the beach", "wet")


def test_shares_are_counted_over_seeds() -> None:
    """Mean, minimum and maximum over the seeds, and the mean share of renders."""
    wrong_object = Label("fox", "on the beach", "red")
    generated = [[image_of(FOX), image_of(OWL)], [image_of(FOX), image_of(wrong_object)]]
    rendered = [[image_of(FOX), image_of(OWL)], [image_of(OWL), image_of(OWL)]]
    objects, scenes, attributes = compare(ReadingJudge(), [FOX, OWL], generated, rendered)  # pyright: ignore[reportArgumentType]
    assert objects == attributes == Share(0.75, 0.5, 1.0, 0.75)
    assert scenes == Share(1.0, 1.0, 1.0, 0.75)


def test_score_counts_correct_images(sprites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model generates no attributes with the second seed; the contact sheet is written."""
    prompts: dict[str, Label] = {}
    requested: list[Request] = []

    def record_caption(label: Label) -> str:
        prompts[caption_of(label)] = label
        return caption_of(label)

    def generate(pipe: object, requests: Sequence[Request], settings: object, batch: int = 8) -> list[Image.Image]:
        requested.extend(requests)
        labels = [prompts.get(request.prompt, FOX) for request in requests]
        no_attribute = requests[0].seed > 0
        return [image_of(Label(label.object, label.scene, "" if no_attribute else label.attribute)) for label in labels]

    held_out = render_held_out(sprites).values
    monkeypatch.setattr(scoring, "render_held_out", lambda _: SimpleNamespace(values=held_out[:2]))
    monkeypatch.setattr(scoring, "caption_of", record_caption)
    monkeypatch.setattr(scoring, "generate_batch", generate)
    monkeypatch.setattr(scoring, "render_image", lambda _, label, rng: image_of(label))
    monkeypatch.setattr(
        scoring, "load_base", lambda _: SimpleNamespace(unet=nn.Linear(1, 1), vae=new_autoencoder(held_out))
    )
    score = score_base(tmp_path, ReadingJudge(), sprites, None, seeds=2, sheet=tmp_path / "sheet.png")  # pyright: ignore[reportArgumentType]

    assert score.objects == score.scenes == Share(1.0, 1.0, 1.0, 1.0)
    assert score.attributes == Share(0.5, 0.0, 1.0, 1.0)
    assert score.objects_with_attribute == Share(1.0, 1.0, 1.0, 1.0)
    assert score.photo_psnr is None
    assert 0 < score.psnr < 40
    assert (score.seeds, score.steps, score.guidance_scale) == (2, 25, 3.0)
    labels = list(prompts.values())
    assert sum(not label.attribute for label in labels) == 200
    assert sum(bool(label.attribute) for label in labels) == 100
    assert len({request.seed for request in requested[:600]}) == 600
    assert Image.open(tmp_path / "sheet.png").size == (20 * 130 - 2, 15 * 130 - 2)


def test_scored_labels_are_deterministic_and_of_known_objects() -> None:
    """They cover all scenes and attributes, and no colour is on a background of that colour."""
    rng = scoring.np.random.default_rng
    labels = scoring.sample_attribute_labels(rng(0), 100)
    assert labels == scoring.sample_attribute_labels(rng(0), 100)
    assert len(UNSEEN) == 200
    assert {name for name, _ in UNSEEN} | {label.object for label in labels} <= {entry.name for entry in OBJECTS}
    assert {scene for _, scene in UNSEEN} == set(SCENES)
    assert {label.attribute for label in labels} == set(ATTRIBUTES)
    labels = scoring.sample_attribute_labels(rng(1), 1000)
    assert not any(label.attribute == "red" and "red" in label.scene for label in labels)


def test_photos_are_center_cropped(tmp_path: Path) -> None:
    """Subfolders are searched; other files are ignored."""
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


def test_saved_score_is_loaded(tmp_path: Path) -> None:
    """Also with the keys of earlier versions."""
    path = tmp_path / "score.json"
    save_score(BASE_SCORE, path)
    assert load_score(path) == BASE_SCORE
    share = '{"mean": 0.9, "least": 0.88, "most": 0.92, "ceiling": 1.0}'
    path.write_text(
        f'{{"things": {share}, "scenes": {share}, "looks": {share}, "dressed": {share}, "seconds": 0.61, '
        '"decibels": 25.04, "photo_decibels": null, "guidance_scale": 3.0, "steps": 25, "seeds": 4, "unet": "0"}'
    )
    assert load_score(path) == Score(*[BASE_SCORE.scenes] * 4, 0.61, 25.04, None, 3.0, 25, 4, "0")


def test_table_shows_figures_ranges_ceilings_and_targets() -> None:
    """One row each; one for photos only if they were measured."""
    rows = score_table(BASE_SCORE).splitlines()
    assert "| Object | 75.0% | 70.0%–80.0% | 95.0% | ≥ 80% |" in rows
    assert "| Attribute | 50.0% | 40.0%–60.0% | 90.0% | ≥ 70% |" in rows
    assert "| Object, with an attribute | 30.0% | 20.0%–40.0% | 80.0% |  |" in rows
    assert "| Time per image, 25 steps | 0.61 s |  |  | ≤ 2.00 s |" in rows
    assert any("photos" in row and "21.5 dB" in row for row in rows)
    assert {row.count("|") for row in rows} == {6}
