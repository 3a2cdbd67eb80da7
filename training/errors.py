"""The error of a training run."""

from hra_diffusion.errors import UserError


class TrainingError(UserError, RuntimeError):
    """Training can't go on: what happened, what is kept, what to change."""
