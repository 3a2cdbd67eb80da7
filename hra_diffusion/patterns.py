"""Patterns of layer names from people and from files, matched in linear time by RE2.

Its syntax is that of regular expressions without lookaround and backreferences, which need backtracking:
https://github.com/google/re2/wiki/Syntax.
"""

import functools
from typing import Any, Protocol

import re2

from hra_diffusion.errors import UserError, shown

MAX_LENGTH = 1000
"""Largest number of characters in a pattern."""


class Pattern(Protocol):
    """A compiled pattern."""

    def match(self, text: str) -> Any:
        """The match at the start of ``text``, or None."""

    def fullmatch(self, text: str) -> Any:
        """The match of the whole ``text``, or None."""


def _options() -> re2.Options:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 2**17  # bytes for each pattern, enough for about 2,000 instructions
    return options


@functools.lru_cache(maxsize=2048)
def compile_pattern(pattern: str, within: str = "{}") -> Pattern:
    """Compile a regular expression, in the place of ``{}`` in another one. Raises UserError."""
    if len(pattern) > MAX_LENGTH:
        raise UserError(f"the pattern {shown(pattern)} has {len(pattern)} characters; at most {MAX_LENGTH} are allowed")
    try:
        re2.compile(pattern, _options())
        return re2.compile(within.replace("{}", pattern), _options())
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if isinstance(error, re2.error) else "it is not Unicode text"
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise UserError(
            f"{shown(pattern)} is not a valid regular expression ({reason[:100]}); '.*to_q' matches all layers whose "
            "path ends in to_q; lookaround such as (?!…) and backreferences such as \\1 are not supported"
        ) from None
