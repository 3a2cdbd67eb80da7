"""Errors and warnings for the user. Any other exception is a bug."""


class UserError(ValueError):
    """An input can't be used. The message says what is wrong, where, and what to do."""


class Note(UserWarning):
    """A warning for the user; the program continues."""


class BaseModelError(UserError):
    """A base model can't be used."""
