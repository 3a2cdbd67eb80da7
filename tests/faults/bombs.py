"""Four visitors add a photo of 150 megapixels at once: the memory of the page and of its decoder."""

import struct
import threading
import time
import zlib
from pathlib import Path

import psutil

from training.data.drafts import Draft

SIDE = 12_240


def write_bomb(path: Path) -> Path:
    """Write a transparent PNG of ``SIDE``² pixels, which takes 0.6 MB as a file and 600 MB decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compress = zlib.compressobj(9)
    pixels = b"".join(compress.compress(bytes(1 + 4 * SIDE)) for _ in range(SIDE)) + compress.flush()
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 6, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


def measure(folder: Path) -> str:
    """Return a line with the peaks in MB, and the longest wait of a fifth visitor who reads and writes a draft."""
    bomb, page, peaks, waits = write_bomb(folder / "bomb.png"), psutil.Process(), [0, 0], []
    adding = [threading.Thread(target=Draft(folder / str(visitor)).add, args=([bomb],)) for visitor in range(4)]
    start, other = time.monotonic(), Draft(folder / "other")
    for thread in adding:
        thread.start()
    while any(thread.is_alive() for thread in adding):
        now = time.monotonic()
        other.save_values(noun=str(now))
        waits.append(time.monotonic() - now)
        decoders = sum(process.memory_info().rss for process in page.children(recursive=True))
        peaks = [max(peaks[0], page.memory_info().rss), max(peaks[1], decoders)]
        time.sleep(0.02)
    return (
        f"four PNGs of {SIDE}² pixels at once: page {peaks[0] / 1e6:.0f} MB, decoder {peaks[1] / 1e6:.0f} MB, "
        f"{time.monotonic() - start:.0f} s; another visitor waits {max(waits):.2f} s at most"
    )


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        print(measure(Path(folder)))
