"""Errors and warnings for the user. Any other exception is a bug."""

import reprlib


class UserError(ValueError):
    """An input can't be used. The message says what is wrong, where, and what to do."""


class Note(UserWarning):
    """A warning for the user; the program continues."""


class BaseModelError(UserError):
    """A base model can't be used."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 300 characters, or its class name if it has none."""
    return next((line[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def shown(value: object) -> str:
    """Return the ``repr`` of a value from outside for a message: at most 100 characters, in bounded time."""
    text = _short.repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


class _ShortRepr(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        """Leave out the digits of a large integer: Python refuses to write more than 4,300."""
        return repr(x) if abs(x) < 10**40 else f"an integer of {x.bit_length()} bits"


_short = _ShortRepr()
_short.maxstring = _short.maxother = 100
_short.maxlevel = 3
