"""Limits of each person on a page that others reach (see ``app.web.quotas``). Imported before Gradio."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one person may have: runs that wait, images requested in an hour, gigabytes of files."""

    waiting_runs: int = 4
    images_per_hour: int = 200
    gigabytes: float = 20.0


DEFAULTS = Limits()
