"""Download of a base model in the background of the page."""

import threading
from dataclasses import dataclass, field
from html import escape

from app.web.html import bar, button, note
from hra_diffusion.errors import UserError
from hra_diffusion.models import hub
from hra_diffusion.models.hub import gigabytes


class Cancelled(UserError):  # noqa: N818 (not an error)
    """The download was stopped."""


@dataclass
class Download:
    """A download in a thread; pages that are reloaded find it again."""

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
    name = download.base.name
    match download.state:
        case "running":
            part = download.done / max(1, download.base.size)
            text = f"{gigabytes(download.done)} of {gigabytes(download.base.size)}"
            line = f'<span class="soft small">{text}</span> {button("Stop", "stop")}'
            return f'<div class="strip"><strong>{escape(name)}</strong>{bar(part, f"download of {name}")}{line}</div>'
        case "finished":
            return (
                f'<div class="strip">{escape(name)} is downloaded. {button("Use", "use", main=True, base=name)}</div>'
            )
        case "stopped":
            return note(f"The download of {name} was stopped; a new one continues where it ended.", "plain")
    return note(download.error, "bad")
