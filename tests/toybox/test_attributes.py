"""Tests of attributes: phrases, determinism, colours and hats."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from toybox.attributes import ATTRIBUTES, find_attribute

BENCHMARK = (
    ("red", "purple", "shiny", "wet", "cube shaped"),
    ("wearing a red hat", "wearing a santa hat", "wearing a rainbow scarf", "wearing a black top hat and a monocle"),
    ("in a chef outfit", "in a firefighter outfit", "in a police outfit", "wearing pink glasses"),
    ("wearing a yellow shirt", "in a purple wizard outfit"),
)
HEADGEAR = [phrase for phrase in ATTRIBUTES if "hat" in phrase.split() or "outfit" in phrase]


def disc(width: int = 120, height: int = 100) -> Image.Image:
    """Return a shaded orange disc, cropped to its visible part."""
    ramp = Image.linear_gradient("L").resize((width, height)).point([128 + value // 2 for value in range(256)])
    sprite = Image.merge(
        "RGBA", (ramp, ramp.point([value // 2 for value in range(256)]), Image.new("L", ramp.size), ramp)
    )
    outline = Image.new("L", (width, height))
    ImageDraw.Draw(outline).ellipse((0, 0, width - 1, height - 1), fill=255)
    sprite.putalpha(outline)
    return sprite


def test_attributes_cover_the_benchmarks_phrases() -> None:
    """Surface attributes precede the noun, worn ones follow it."""
    assert {phrase for line in BENCHMARK for phrase in line} <= set(ATTRIBUTES)
    for phrase, attribute in ATTRIBUTES.items():
        assert attribute.phrase == phrase
        assert attribute.precedes_noun == (not phrase.startswith(("wearing ", "in a ")))


@pytest.mark.parametrize("phrase", ATTRIBUTES)
def test_attributes_change_the_sprite_deterministically(phrase: str) -> None:
    """Equal seeds give equal sprites, the input is unchanged, and most of the result is visible."""
    sprite = disc()
    before = sprite.tobytes()
    first, again, other = (ATTRIBUTES[phrase].apply(sprite, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert sprite.tobytes() == before
    assert first.mode == "RGBA"
    assert (first.size, first.tobytes()) == (again.size, again.tobytes())
    assert first.tobytes() not in (before, other.tobytes())
    assert (np.asarray(first.getchannel("A")) > 128).mean() > 0.3


@pytest.mark.parametrize("phrase", ATTRIBUTES)
def test_attributes_support_every_aspect_ratio(phrase: str) -> None:
    """Including very narrow and very flat sprites."""
    for size in ((12, 200), (200, 12), (256, 256)):
        assert ATTRIBUTES[phrase].apply(disc(*size), np.random.default_rng(0)).getbbox() is not None


@pytest.mark.parametrize(
    ("phrase", "hue"), [("red", 0), ("yellow", 48), ("green", 133), ("blue", 221), ("purple", 275)]
)
def test_colours_have_the_right_hue(phrase: str, hue: int) -> None:
    """Hue in degrees; outline and brightness are kept."""
    sprite = disc()
    changed = ATTRIBUTES[phrase].apply(sprite, np.random.default_rng(0))
    assert changed.getchannel("A").tobytes() == sprite.getchannel("A").tobytes()
    opaque = np.asarray(changed)[np.asarray(changed)[..., 3] > 128][:, :3]
    turn, saturation, _ = colorsys.rgb_to_hsv(*(opaque.mean(axis=0) / 255))
    assert abs((turn * 360 - hue + 180) % 360 - 180) < 12
    assert saturation > 0.35
    grey = np.asarray(changed.convert("L"), int)
    assert grey[90, 60] > grey[10, 60] + 20


@pytest.mark.parametrize("phrase", HEADGEAR)
def test_a_hat_reaches_above_the_head(phrase: str) -> None:
    """By more than 15 pixels, near the centre."""
    sprite = disc()
    changed = np.asarray(ATTRIBUTES[phrase].apply(sprite, np.random.default_rng(0)).getchannel("A")) > 128
    rise = len(changed) - sprite.height
    assert rise > 15
    across = np.flatnonzero(changed[: rise // 2].any(axis=0)).mean() / changed.shape[1]
    assert 0.25 < across < 0.75


def test_unknown_attribute_lists_the_valid_ones() -> None:
    """The error names all phrases."""
    with pytest.raises(ValueError, match=r"'in a cook outfit'.*in a chef outfit"):
        find_attribute("in a cook outfit")
