"""Names that are safe on every system."""

import pytest

from hra_diffusion.errors import UserError
from hra_diffusion.names import cut, unused_name, validated_name


@pytest.mark.parametrize("name", ["con", "Aux", "NUL", "com1", "LPT9", "com¹", "LPT³"])
def test_names_reserved_on_windows_are_refused(name):
    """Also with superscript digits (Microsoft, Naming Files, Paths, and Namespaces)."""
    with pytest.raises(UserError, match="can't be used for a folder"):
        validated_name(name)


@pytest.mark.parametrize("name", ["console", "com10", "Rex²", "aux 2"])
def test_names_similar_to_reserved_ones_are_valid(name):
    assert validated_name(name) == name


@pytest.mark.parametrize("letter", ["x", "小", "𠀀"])
def test_a_numbered_name_is_a_valid_name(letter, tmp_path):
    longest = cut(letter * 64)
    (tmp_path / longest).mkdir()
    assert validated_name(unused_name(longest, tmp_path)).endswith(" 2")
    assert unused_name("Rex", tmp_path) == "Rex"
