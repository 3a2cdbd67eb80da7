"""Download of a base model in the background of the page."""

import threading
from dataclasses import dataclass, field

from app.web.html import render
from hra_diffusion.errors import UserError
from hra_diffusion.models import hub
from hra_diffusion.models.hub import format_size


class Cancelled(UserError):  # noqa: N818 (not an error)
    """The download was stopped."""


@dataclass
class Download:
    """A download in a thread of the page's process. ``state``: "running", "finished", "stopped" or "failed"."""

    base: hub.HubBase
    done: int = 0
    state: str = "running"
    error: str = ""
    stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            hub.download(self.base, self._report)
            self.state = "finished"
        except Cancelled:
            self.state = "stopped"
        except Exception as error:
            self.state, self.error = "failed", str(error)
            if not isinstance(error, UserError):
                raise

    def _report(self, done: int) -> None:
        if self.stopped.is_set():
            raise Cancelled("stopped")
        self.done = done


def show_download(download: Download | None) -> str:
    """Return a download's progress and what can be done about it."""
    if download is None:
        return ""
    total = download.base.size
    return render(
        "base_download", download=download, percent=round(100 * download.done / max(1, total)),
        done=format_size(download.done), total=format_size(total),
    )  # fmt: skip
