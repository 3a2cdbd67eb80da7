"""YAML: plain values, refused before they are built if they are large or of another kind."""

import time

import pytest

from hra_diffusion import yaml_text
from hra_diffusion.errors import UserError

LAUGHS = "\n".join(
    ["a: &a [x, x]", *(f"{b}: &{b} [*{a}, *{a}, *{a}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))]
)


def test_plain_values_are_read_as_before():
    text = "name: Rex\nsteps: 10\nrate: 1.0e-4\nflip: yes\nnone:\nlist: [a, 'b: c']\noptions: {rank: 4}\n"
    assert yaml_text.parse(text) == {
        "name": "Rex", "steps": 10, "rate": 1e-4, "flip": True, "none": None, "list": ["a", "b: c"],
        "options": {"rank": 4},
    }  # fmt: skip
    assert yaml_text.parse("") == {} and yaml_text.parse(yaml_text.write({"a": [1.5, None]})) == {"a": [1.5, None]}


def test_a_date_is_the_name_of_a_folder():
    assert yaml_text.parse("photos: [2026-01-01]") == {"photos": ["2026-01-01"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "line 1: anchors"),
        ("a: 1\nb: *a", "line 2: anchors .* aliases"),
        ("a: !!python/object/apply:os.system [ls]", "tags"),
        ("a: !!bool xx", "tags"),
        ("a: !!binary AAAA", "tags"),
        ("name: " + "[" * 3000 + "]" * 3000, "more than 8 deep"),
        ("a: {" * 50, "more than 8 deep"),
        ("a: " + "9" * 5000, "looks like a number"),
        ("a: " + "9" * 20_000, "20,000 characters"),
        ("a: 0x_", "looks like a number"),
        ("a: [" + "x," * 60_000 + "]", "more than 50,000 values"),
        ("a: " + "x" * 1_000_001, "1,000,004 characters"),
        ("- 1", "holds no settings"),
        ("a: [", "line 2"),
        ("a: 1\n\tb: 2", "line 2"),
        ('a: "\\ud800"', "not YAML"),
        ('a: "b\\0c"', r"\\0"),
        ("? [a]\n: b", "not YAML"),
        ("a: =", "not YAML"),
        ("\x00", "not YAML"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_other_yaml_is_refused_at_once(text, message):
    start = time.perf_counter()
    with pytest.raises(UserError, match=message) as error:
        yaml_text.parse(text)
    assert len(str(error.value)) < 500 and time.perf_counter() - start < 2
