"""Comparisons equal single generations."""

import pytest
from conftest import distance, pipe_with_two_adapters
from PIL import Image

from hra_diffusion.comparison.compare import Variant, compare
from hra_diffusion.comparison.statistics import difference_from_base
from hra_diffusion.comparison.storage import save_comparison
from hra_diffusion.generation.requests import Settings
from hra_diffusion.generation.sampling import generate

FEW = Settings(steps=4)


@pytest.fixture(scope="module")
def pipe():
    return pipe_with_two_adapters()


def test_a_comparison_equals_generate(pipe, tmp_path):
    variants = [Variant("base", {}, "dog"), Variant("A", {"a": 1.0}, "sks dog"), Variant("B", {"b": 0.5}, "qwe dog")]
    prompts, seeds = ["a {subject} in the snow", "a {subject}"], [5, 6]
    result = compare(pipe, variants, prompts, seeds, FEW, photos=[Image.new("RGB", (16, 16), "red")], batch_size=5)
    assert len(result.samples) == 12
    for p, prompt in enumerate(prompts):
        for s, seed in enumerate(seeds):
            for sample, variant in zip(result.row(p, s), variants, strict=True):
                expected = prompt.replace("{subject}", variant.subject)
                assert sample.request.prompt == expected
                alone = generate(pipe, expected, variant.adapters, seed, settings=FEW)[0]
                assert distance(sample.image, alone) < 0.5
    grid = save_comparison(result, tmp_path)
    assert grid == tmp_path / "grid.png" and len(list((tmp_path / "pictures").iterdir())) == 12
    differences = difference_from_base(result)
    assert differences[0] == 0 and differences[1] > 0
