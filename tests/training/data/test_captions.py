"""Adding the trigger to captions."""

from pathlib import Path

import pytest

from training import config as configs
from training.data.captions import final_caption, final_captions
from training.runs.event_text import caption_lines
from training.runs.events import Captions


@pytest.mark.parametrize(
    ("caption", "final"),
    [
        ("a dog sitting", "sks dog, a dog sitting"),  # as kohya's taggers write them
        ("1dog, sitting, grass", "sks dog, 1dog, sitting, grass"),
        ("a {subject} sitting", "a sks dog sitting"),
        ("a {subject} beside {subject}", "a sks dog beside sks dog"),
        ("a sks dog sitting", "a sks dog sitting"),
        ("a SKS puppy sitting", "a SKS puppy sitting"),
        ("sks, sitting", "sks, sitting"),
        ("sks's bowl", "sks's bowl"),
        ("a dog in the tusks", "sks dog, a dog in the tusks"),
        ("sksy dog", "sks dog, sksy dog"),
    ],
)
def test_the_subject_is_added_to_captions_without_the_trigger(caption, final):
    assert final_caption(caption, "sks", "dog") == final
    assert final_caption(caption, "sks", "dog", add_trigger=False) == caption.replace("{subject}", "sks dog")


def test_triggers_may_contain_any_characters():
    assert final_caption("a [V] dog", "[V]", "dog") == "a [V] dog"
    assert final_caption("a V dog", "[V]", "dog") == "[V] dog, a V dog"
    assert final_caption("ein Hündchen", "übi", "hund") == "übi hund, ein Hündchen"


def test_final_captions_of_a_run():
    given = {Path("0.jpg"): None, Path("1.jpg"): "a dog sitting", Path("2.jpg"): "a sks dog", Path("3.jpg"): None}
    values = {"name": "Rex", "photos": ["."], "class_noun": "dog"}
    used = final_captions(configs.parse(values), given)
    texts = ["a photo of a sks dog", "sks dog, a dog sitting", "a sks dog", "a photo of a sks dog"]
    assert list(used.captions.values()) == texts and used.added == ("1.jpg",)
    assert caption_lines(used) == [
        'caption of 0.jpg, 3.jpg: "a photo of a sks dog"',
        'caption of 1.jpg: "sks dog, a dog sitting"',
        'caption of 2.jpg: "a sks dog"',
        "the trigger was added to 1 of 4 captions, which lacked it",
    ]
    off = final_captions(configs.parse({**values, "add_trigger": False}), given)
    assert off.captions["1.jpg"] == "a dog sitting" and off.added == ()
    own = final_captions(configs.parse({**values, "caption": "a photo"}), {Path("0.jpg"): None})
    assert own.captions == {"0.jpg": "sks dog, a photo"}, "the default caption gets the trigger too"
    assert caption_lines(Captions({"a/0.jpg": "a cat", "a/1.jpg": "a cat"}, ())) == ['caption of every photo: "a cat"']
