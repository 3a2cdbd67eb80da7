"""Scores by CLIP: against transformers' own forward pass, and what is made of them."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from conftest import stir, tiny_clip
from PIL import Image

from hra_diffusion.adapters import attachment
from hra_diffusion.comparison.compare import Comparison, Sample, Variant, compare
from hra_diffusion.comparison.statistics import clear_best, score_statistics
from hra_diffusion.comparison.storage import load_comparison, save_comparison
from hra_diffusion.errors import UserError
from hra_diffusion.evaluation.clip import Clip, Score, clip_distance, default_source, score_images
from hra_diffusion.generation.requests import FullSettings, Request, Settings
from hra_diffusion.generation.sampling import generate


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return Clip(tiny_clip(tmp_path_factory.mktemp("clip")))


def pictures(count: int) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, 40, 32, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in pixels]


def test_scores_are_those_of_the_model_itself(clip):
    drawn, prompts = pictures(3), ["a dog", "a photo of a dog in the snow", "a cat"]
    found = clip.processor(text=prompts, images=drawn, return_tensors="pt", padding=True)
    with torch.no_grad():
        wanted = clip.model(**found).logits_per_image.diagonal() / clip.model.logit_scale.exp()
    torch.testing.assert_close(torch.tensor([s.prompt for s in score_images(clip, drawn, prompts)]), wanted)


def test_a_picture_is_most_like_itself(clip):
    drawn = pictures(3)
    found = score_images(clip, drawn, ["x"] * 3, photos=drawn[:1])
    assert found[0].subject == pytest.approx(1, abs=1e-5) and found[1].subject < found[0].subject
    assert score_images(clip, drawn, ["x"] * 3)[0].subject is None


def test_a_text_that_is_too_long_is_cut(clip):
    assert score_images(clip, pictures(1), ["dog " * 200])[0].prompt == pytest.approx(
        score_images(clip, pictures(1), ["dog " * 300])[0].prompt
    )


def test_a_model_that_is_not_there_says_so(tmp_path):
    with pytest.raises(UserError, match="can't be loaded"):
        Clip(tmp_path / "nothing")


def test_a_damaged_model_says_so(tmp_path):
    folder = shutil.copytree(default_source("toybox"), tmp_path / "clip")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    with pytest.raises(UserError, match="can't be loaded"):
        Clip(folder)


def test_a_scored_comparison_is_kept_with_its_figures(clip, pipe, tmp_path):
    columns = [Variant("base", {}, "dog", "dog"), Variant("other", {}, "sks dog", "dog")]
    done = compare(pipe, columns, ["a {subject}"], [1, 2], Settings(steps=1), pictures(2), clip=clip)
    drawn, words = [cell.image for cell in done.samples], ["a dog"] * 4
    assert [cell.score for cell in done.samples] == score_images(clip, drawn, words, pictures(2), [0, 1, 0, 1]), (
        "scored by the class noun"
    )
    save_comparison(done, tmp_path)
    kept = load_comparison(tmp_path)
    assert [cell.score for cell in kept.samples] == [cell.score for cell in done.samples]
    assert score_statistics(kept, 0)["subject"].mean == pytest.approx(
        sum(done.samples[i].score.subject for i in (0, 2)) / 2
    )


def test_pictures_of_equal_noise_have_no_variety(clip):
    one, two, three = pictures(3)
    drawn = [one, one, two, three, one]
    found = [
        s.variety for s in score_images(clip, drawn, ["x"] * 5, groups=["same", "same", "other", "other", "alone"])
    ]
    assert found[:2] == pytest.approx([0, 0], abs=1e-5) and found[4] is None
    likeness = (clip.embed_images([two]) @ clip.embed_images([three]).T).item()
    assert found[2:4] == pytest.approx([1 - likeness] * 2, abs=1e-5)


def test_the_nearest_photo_is_told_apart_from_the_average(clip):
    photos = pictures(3)
    (found,) = score_images(clip, photos[:1], ["x"], photos)
    assert found.nearest == pytest.approx(1, abs=1e-5) and found.subject < found.nearest


def test_what_an_adapter_does_to_its_class_is_measured_on_the_class_noun_alone(clip, pipe):
    attachment.attach(pipe.unet, "lora", {"rank": 4}, name="a")
    stir(attachment.adapter_parameters(pipe.unet, "a").values(), by=1.0)
    columns = [Variant("base", {}, "dog", "dog"), Variant("A", {"a": 1.0}, "sks dog", "dog"),
               Variant("off", {"a": 0.0}, "sks dog", "dog")]  # fmt: skip
    done = compare(pipe, columns, ["a {subject}", "a cat"], [1, 2], Settings(steps=2), clip=clip, drift=True)
    plain = compare(pipe, columns, ["a {subject}", "a cat"], [1, 2], Settings(steps=2), clip=clip)
    for one, two in zip(done.samples, plain.samples, strict=True):
        assert np.abs(np.asarray(one.image, dtype=float) - np.asarray(two.image, dtype=float)).mean() < 0.5
    base, adapter, off = ([cell.score.drift for cell in done.samples[n::3]] for n in range(3))
    assert base == [None] * 4 and off == pytest.approx([0] * 4, abs=1e-6) and min(adapter) > 1e-5
    by_hand = [generate(pipe, "a cat", mix, seed=1, settings=Settings(steps=2))[0] for mix in ({"a": 1.0}, {})]
    assert adapter[2:] == pytest.approx(clip_distance(clip, by_hand[:1], by_hand[1:]) * 2, rel=0.2)
    assert plain.samples[1].score.drift is None and "drift" not in score_statistics(plain, 1)


def scored(*columns: list[float]) -> Comparison:
    """A comparison of adapters with these subject scores, a list for each."""
    names = [Variant(f"{n}", {f"{n}": 1.0}) for n in range(len(columns))]
    image, request = Image.new("RGB", (8, 8)), Request("x", 0)
    rows = [zip(names, row, strict=True) for row in zip(*columns, strict=True)]
    cells = [Sample(name.label, request, image, Score(subject, 0.5)) for row in rows for name, subject in row]
    full = FullSettings(1, 1.0, "ddim", 8, 8)
    return Comparison(tuple(names), ("x",), tuple(range(len(columns[0]))), tuple(cells), full, 0.0)


def test_only_what_is_clearly_better_is_marked():
    clear = scored([0.7, 0.72, 0.69, 0.71], [0.6, 0.63, 0.58, 0.6])
    assert clear_best(clear, "subject") == 0
    assert clear_best(clear, "prompt") is None, "equal everywhere"
    assert clear_best(scored([0.7, 0.5, 0.69, 0.5], [0.6, 0.63, 0.58, 0.6]), "subject") is None, "now here, now there"
    assert clear_best(scored([0.7, 0.72], [0.6, 0.63]), "subject") is None, "too few"
    assert clear_best(scored([0.7] * 4), "subject") is None, "nothing to be better than"
    unscored = dataclasses.replace(clear, samples=tuple(dataclasses.replace(s, score=None) for s in clear.samples))
    assert clear_best(unscored, "subject") is None and score_statistics(unscored, 0) == {}
