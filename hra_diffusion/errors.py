"""What a person can put right. Everything else that is raised is a fault of the program."""


class UserError(ValueError):
    """Something given can't be used: the message says what is wrong, where, and what to do."""


class Note(UserWarning):
    """Something a person should know that stops nothing."""


class BaseModelError(UserError):
    """A base model can't be used: what is wrong, where, and what to do."""
