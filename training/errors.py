"""The error of a training run."""

from hra_diffusion.errors import UserError


class TrainingError(UserError, RuntimeError):
    """Training can't continue. The message says what happened, which checkpoint is left and what to change."""
