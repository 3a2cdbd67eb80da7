"""Shuffling and dropout of captions."""

from itertools import permutations

import pytest
import torch
from conftest import tiny_pipe, tiny_xl_pipe

from training import config as configs
from training.data.caption_variants import MAX_ORDERS, shuffled, variants
from training.data.captions import class_caption, final_captions
from training.data.latent_cache import encode_captions
from training.objective import seeded_generator
from training.settings.subject import Concept

GIVEN = {"name": "Rex", "photos": ["."], "class_noun": "dog"}
TAGS = "sks dog, sitting, grass, sun, tree, sky"


def drawn(captions, batches=500, **changes):
    """The texts of the first photo in many batches."""
    config = configs.parse({**GIVEN, **changes})
    rows = variants(captions, config)
    photos = torch.zeros(4, dtype=torch.long)
    picks = [rows.draw(photos, seeded_generator(0, "captions", position)) for position in range(batches)]
    return [rows.texts[row] for row in torch.cat(picks)]


def test_the_parts_of_a_caption_are_shuffled_but_for_the_first():
    texts = drawn([TAGS, "a sks dog"], shuffle_captions=True)
    parts = [text.split(", ") for text in texts]
    assert all(own[0] == "sks dog" and sorted(own) == sorted(TAGS.split(", ")) for own in parts)
    assert MAX_ORDERS / 2 < len(set(texts)) <= MAX_ORDERS and texts == drawn([TAGS, "a sks dog"], shuffle_captions=True)


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_keep_tokens_parts_stay_in_their_place(keep):
    orders = shuffled("a, b, c,d", keep, seeded_generator(0))
    fixed, free = ["a", "b", "c", "d"][:keep], ["a", "b", "c", "d"][keep:]
    expected = {", ".join([*fixed, *order]) for order in permutations(free)}
    assert set(orders) <= expected and len(orders) == min(len(expected), MAX_ORDERS)


def test_a_run_keeps_its_number_of_parts():
    texts = drawn([TAGS], shuffle_captions=True, keep_tokens=3)
    assert len({*texts}) == 6 and all(text.startswith("sks dog, sitting, grass, ") for text in texts)


def test_sentences_are_not_shuffled():
    assert shuffled("sks dog,  sitting on a rug", 1, seeded_generator(0)) == ["sks dog,  sitting on a rug"]


def test_a_share_of_the_captions_is_dropped_at_random():
    texts = drawn(["a sks dog", "a sks dog at night"], caption_dropout=0.1)
    assert set(texts) == {"a sks dog", ""} and 0.07 < texts.count("") / len(texts) < 0.13
    assert set(drawn(["a sks dog"], caption_dropout=0)) == {"a sks dog"}


def test_prefix_and_suffix_are_part_of_the_caption_before_the_trigger_is_added():
    config = configs.parse({**GIVEN, "caption_prefix": "photo of {subject},", "caption_suffix": ", 4k"})
    given = {configs.Path("0.jpg"): "sitting", configs.Path("1.jpg"): None}
    captions = list(final_captions(config, given).captions.values())
    assert captions == ["photo of sks dog, sitting, 4k", "photo of sks dog, a photo of a sks dog, 4k"]
    plain = configs.parse({**GIVEN, "caption_prefix": "drawing,"})
    assert final_captions(plain, given).captions["0.jpg"] == "sks dog, drawing, sitting", "the trigger rule holds"


def test_an_empty_caption_of_sdxl_is_embedded_as_guidance_does_without_a_prompt():
    text = encode_captions(tiny_xl_pipe(), ["", "a sks dog"], embed=True)
    for value in text.values():
        assert not value[0].any() and value[1].any()
    assert encode_captions(tiny_pipe(), [""], embed=True)["hidden"].any(), "others embed the empty text"


@pytest.mark.parametrize(
    ("caption", "of_class"),
    [
        ("a photo of a sks owl", "a photo of an owl"),
        ("a photo of an SKS owl in the snow", "a photo of an owl in the snow"),
        ("SKS, sitting", "owl, sitting"),
        ("sks owl, sitting, sks's nest", "owl, sitting, owl's nest"),
        ("tusks of a qwe teapot", "tusks of a teapot"),
        ("a bird", "a bird"),
    ],
)
def test_class_captions_have_the_class_noun_in_place_of_the_subject(caption, of_class):
    subjects = [
        Concept(photos=("a",), class_noun="owl", trigger="sks"),  # pyright: ignore[reportArgumentType]
        Concept(photos=("b",), class_noun="teapot", trigger="qwe"),  # pyright: ignore[reportArgumentType]
    ]
    assert class_caption(caption, subjects) == of_class
