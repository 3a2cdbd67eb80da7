"""Scored comparisons and their statistics."""

import dataclasses

import numpy as np
import pytest
from conftest import random_images, stir, tiny_clip
from PIL import Image

from hra_diffusion.adapters import attachment
from hra_diffusion.comparison.compare import Comparison, Sample, Variant, compare
from hra_diffusion.comparison.statistics import clear_best, score_statistics
from hra_diffusion.comparison.storage import load_comparison, save_comparison
from hra_diffusion.evaluation.clip import Clip, Score, clip_distance, score_images
from hra_diffusion.generation.requests import FullSettings, Request, Settings
from hra_diffusion.generation.sampling import generate


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return Clip(tiny_clip(tmp_path_factory.mktemp("clip")))


def test_a_scored_comparison_is_stored_with_its_scores(clip, pipe, tmp_path):
    variants, photos = [Variant("base", {}, "dog", "dog"), Variant("other", {}, "sks dog", "dog")], random_images(2)
    done = compare(pipe, variants, ["a {subject}"], [1, 2], Settings(steps=1), photos, clip=clip)
    expected = score_images(clip, [sample.image for sample in done.samples], ["a dog"] * 4, photos, [0, 1, 0, 1])
    assert [sample.score for sample in done.samples] == expected, "prompts are scored with the class noun"
    save_comparison(done, tmp_path)
    loaded = load_comparison(tmp_path)
    assert [sample.score for sample in loaded.samples] == [sample.score for sample in done.samples]
    mean = sum(score.subject for score in expected[::2]) / 2
    assert score_statistics(loaded, 0)["subject"].mean == pytest.approx(mean)


def test_drift_is_measured_on_the_class_noun_without_the_trigger(clip, pipe):
    attachment.attach(pipe.unet, "lora", {"rank": 4}, name="a")
    stir(attachment.adapter_parameters(pipe.unet, "a").values(), by=1.0)
    variants = [Variant("base", {}, "dog", "dog"), Variant("A", {"a": 1.0}, "sks dog", "dog"),
                Variant("off", {"a": 0.0}, "sks dog", "dog")]  # fmt: skip
    prompts, few = ["a {subject}", "a cat"], Settings(steps=2)
    done = compare(pipe, variants, prompts, [1, 2], few, clip=clip, drift=True)
    plain = compare(pipe, variants, prompts, [1, 2], few, clip=clip)
    for one, two in zip(done.samples, plain.samples, strict=True):
        assert np.abs(np.asarray(one.image, dtype=float) - np.asarray(two.image, dtype=float)).mean() < 0.5
    base, adapter, off = ([sample.score.drift for sample in done.samples_of(n)] for n in range(3))
    assert base == [None] * 4 and off == pytest.approx([0] * 4, abs=1e-6) and min(adapter) > 1e-5
    by_hand = [generate(pipe, "a cat", adapters, seed=1, settings=few)[0] for adapters in ({"a": 1.0}, {})]
    assert adapter[2:] == pytest.approx(clip_distance(clip, by_hand[:1], by_hand[1:]) * 2, rel=0.2)
    assert plain.samples[1].score.drift is None and "drift" not in score_statistics(plain, 1)


def scored(*variants: list[float]) -> Comparison:
    """Return a comparison of adapters with these subject scores, one list per variant."""
    names = [Variant(f"{n}", {f"{n}": 1.0}) for n in range(len(variants))]
    image, request = Image.new("RGB", (8, 8)), Request("x", 0)
    rows = [zip(names, row, strict=True) for row in zip(*variants, strict=True)]
    samples = [Sample(name.label, request, image, Score(subject, 0.5)) for row in rows for name, subject in row]
    full = FullSettings(1, 1.0, "ddim", 8, 8)
    return Comparison(tuple(names), ("x",), tuple(range(len(variants[0]))), tuple(samples), full, 0.0)


def test_only_a_clear_difference_is_marked():
    clear = scored([0.7, 0.72, 0.69, 0.71], [0.6, 0.63, 0.58, 0.6])
    assert clear_best(clear, "subject") == 0
    assert clear_best(clear, "prompt") is None, "equal scores"
    assert clear_best(scored([0.7, 0.5, 0.69, 0.5], [0.6, 0.63, 0.58, 0.6]), "subject") is None, "mixed differences"
    assert clear_best(scored([0.7, 0.72], [0.6, 0.63]), "subject") is None, "too few pairs"
    assert clear_best(scored([0.7] * 4), "subject") is None, "no other variant"
    unscored = dataclasses.replace(clear, samples=tuple(dataclasses.replace(s, score=None) for s in clear.samples))
    assert clear_best(unscored, "subject") is None and score_statistics(unscored, 0) == {}
