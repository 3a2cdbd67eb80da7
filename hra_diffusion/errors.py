"""Errors and warnings for the user. Any other exception is a bug."""


class UserError(ValueError):
    """An input can't be used. The message says what is wrong, where, and what to do."""


class Note(UserWarning):
    """A warning for the user; the program continues."""


class BaseModelError(UserError):
    """A base model can't be used."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 300 characters, or its class name if it has none."""
    return next((line[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)
