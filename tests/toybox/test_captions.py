"""Tests of captions."""

from pathlib import Path

import numpy as np
import pytest

from toybox.captions import OPENINGS, RARE_TOKENS, caption_of, sample_caption
from toybox.labels import Label
from toybox.rendering import render_image


def test_sampled_captions_vary_in_the_documented_shares() -> None:
    """Openings, articles, class nouns, rare tokens, omitted scenes and empty captions."""
    rng = np.random.default_rng(0)
    captions = [sample_caption(Label("owl", "in the snow"), rng) for _ in range(4000)]
    filled = [caption for caption in captions if caption]
    assert {f"{opening}an owl in the snow" for opening in OPENINGS} < set(captions)
    assert "a photo of a sks owl in the snow" in captions
    assert "a qwe bird in the snow" in captions
    assert captions.count("") / 4000 == pytest.approx(0.1, abs=0.02)
    assert sum("bird" in caption for caption in filled) / len(filled) == pytest.approx(0.35, abs=0.03)
    rare = sum(any(token in caption for token in RARE_TOKENS) for caption in filled)
    assert rare / len(filled) == pytest.approx(0.1, abs=0.02)
    assert sum("snow" in caption for caption in filled) / len(filled) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(
    ("label", "caption"),
    [
        (Label("owl", "in the snow"), "a photo of an owl in the snow"),
        (Label("owl", "in the snow", "red"), "a photo of a red owl in the snow"),
        (Label("fox", "on the beach", "wearing a santa hat"), "a photo of a fox wearing a santa hat on the beach"),
        (Label("fox", "on the beach", second_object="apple"), "a photo of a fox on the beach next to an apple"),
        (Label("fox", "on the beach", second_object="red apple"), "a photo of a fox on the beach next to a red apple"),
        (Label("owl", "in the snow", hue_shift=0.4), "a photo of a bird in the snow"),
    ],
)
def test_full_caption_names_everything_in_the_label(label: Label, caption: str) -> None:
    """Objects in other colours are named by their class noun."""
    assert caption_of(label) == caption


def test_captions_omit_names_of_objects_in_other_colours(sprites: Path) -> None:
    """Their images differ from those in the object's own colours."""
    rng, label = np.random.default_rng(0), Label("owl", "in the snow", hue_shift=0.4)
    assert not any("owl" in sample_caption(label, rng) for _ in range(200))
    assert render_image(sprites, label, 1).tobytes() != render_image(sprites, Label("owl", "in the snow"), 1).tobytes()
