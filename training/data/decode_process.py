"""Decode photos of visitors in a process of its own, one at a time, with a limit of memory and time.

``python -m training.data.decode_process`` reads one JSON line ``[photo, preview]`` after another from standard input,
writes a small copy of the photo to the second path, and answers with one JSON line: the facts of the photo, or why it
can't be used.
"""

import contextlib
import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from PIL import Image
from pydantic import TypeAdapter

from training.data.photo import MIN_SIDE, Box, PhotoError

MAX_SECONDS = 30.0
MAX_MEMORY = 1_400_000_000
"""Resident bytes of the process. The largest photos that ``decoding`` accepts take 1.1 GB."""
POLL_SECONDS = 0.05
PREVIEW_SIDE, PREVIEW_LONG_SIDE = 1024, 4096
"""Most pixels of the short and of the long side of a small copy."""


@dataclass(frozen=True)
class Facts:
    """What is known of a photo besides its small copy.

    Attributes:
        size: Width and height of the upright photo in pixels.
        window: The smart crop of the whole photo.
        sha256: SHA-256 of the file in hexadecimal.
    """

    size: tuple[int, int]
    window: Box
    sha256: str


class Decoder:
    """The process, started when it is needed. ``decode`` waits until no other photo is being decoded."""

    def __init__(self) -> None:
        self._decoding = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def decode(self, photo: Path, preview: Path) -> Facts:
        """Write a small copy of a photo, as PNG, and return its facts.

        Raises PhotoError if it can't be used, or if decoding takes more than ``MAX_SECONDS`` or ``MAX_MEMORY``.
        """
        with self._decoding:
            watch, answer = _Watch(process := self._running()), ""
            assert process.stdin and process.stdout
            with contextlib.suppress(OSError), watch:  # a broken pipe
                process.stdin.write(json.dumps([str(photo), str(preview)]) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            if not answer:
                self._end()
        if not answer:
            reason = watch.exceeded or "ended the process that decodes it"
            raise PhotoError(f"{photo}: {reason}. Save a smaller copy, such as a JPEG, and use that.")
        found = json.loads(answer)
        if isinstance(found, str):
            raise PhotoError(found)
        return TypeAdapter(Facts).validate_python(found)

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "training.data.decode_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        return self._process

    def _end(self) -> None:
        if process := self._process:
            self._process = None
            process.kill()
            with contextlib.suppress(OSError):  # what its pipe did not take
                process.communicate()


class _Watch:
    """Within the block, a thread kills a process that takes too long or too much memory. ``exceeded`` says which."""

    def __init__(self, process: "subprocess.Popen[str]"):
        self.exceeded = ""
        self._process = process
        self._done = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        start = time.monotonic()
        with contextlib.suppress(psutil.Error):  # it has ended
            process = psutil.Process(self._process.pid)
            while not self._done.wait(POLL_SECONDS):
                if time.monotonic() - start > MAX_SECONDS:
                    self.exceeded = f"takes more than {MAX_SECONDS:.0f} seconds to decode"
                elif process.memory_info().rss > MAX_MEMORY:
                    self.exceeded = f"takes more than {MAX_MEMORY / 1e9:.1f} GB of memory to decode"
                if self.exceeded:
                    self._process.kill()
                    return


DECODER = Decoder()
"""The one of this process: the photos of all visitors are decoded one after another."""


def make_preview(photo: Path, preview: Path) -> Facts:
    """Decode a photo here, write a small copy and return its facts. Raises PhotoError."""
    from training.data.cropping import crop_window
    from training.data.decoding import decode
    from training.data.photo_files import resolve

    upright = decode(resolve(photo))
    window = crop_window(upright, (0, 0, *upright.size), "smart", MIN_SIDE)
    small = upright.image
    scale = min(1.0, PREVIEW_SIDE / min(small.size), PREVIEW_LONG_SIDE / max(small.size))
    if scale < 1:
        side = [max(1, round(length * scale)) for length in small.size]
        small = small.resize((side[0], side[1]), Image.Resampling.LANCZOS, reducing_gap=3.0)
    small.save(preview, "PNG", compress_level=1)
    return Facts(upright.size, window, upright.sha256)


def main() -> None:
    """Answer the lines of standard input until it ends."""
    for line in sys.stdin:
        photo, preview = json.loads(line)
        try:
            answer = asdict(make_preview(Path(photo), Path(preview)))
        except PhotoError as error:
            answer = str(error)
        except OSError as error:
            answer = f"{photo}: no copy can be saved ({error.strerror or error}). Free some space, then add it again."
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    main()
