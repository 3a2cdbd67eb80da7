"""Names that are safe on every system."""

import pytest

from hra_diffusion.errors import UserError
from hra_diffusion.names import validated_name


@pytest.mark.parametrize("name", ["con", "Aux", "NUL", "com1", "LPT9", "com¹", "LPT³"])
def test_names_reserved_on_windows_are_refused(name):
    """Also with superscript digits (Microsoft, Naming Files, Paths, and Namespaces)."""
    with pytest.raises(UserError, match="can't be used for a folder"):
        validated_name(name)


@pytest.mark.parametrize("name", ["console", "com10", "Rex²", "aux 2"])
def test_names_similar_to_reserved_ones_are_valid(name):
    assert validated_name(name) == name
