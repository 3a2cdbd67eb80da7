"""The rules for files and processes on Windows, enforced on Linux during a test.

From Microsoft's documentation of FlushFileBuffers (the handle needs GENERIC_WRITE), MoveFileEx and DeleteFile (a file
that is open without FILE_SHARE_DELETE, as Python opens files, or mapped can't be replaced, renamed or deleted), and
from Python's of os.rename, os.kill, signal, resource and fcntl.
"""

import errno
import fcntl
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hra_diffusion import files

PEAK = 5 << 30
"""Peak memory of this process, as the system reports it: psutil's peak_wset."""
MISSING = {signal: ("SIGKILL", "SIGHUP", "SIGUSR1"), os: ("getloadavg", "sysconf", "geteuid", "getuid", "mkfifo")}


@pytest.fixture
def windows(monkeypatch, tmp_path):  # pytest asks the system for the user before it is taken away
    """Enforce the rules. Yields the paths whose replacement, renaming or deletion was refused."""
    refused: list[str] = []
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files, "BUSY_SECONDS", 0.2)
    for module, names in MISSING.items():
        for name in names:
            monkeypatch.delattr(module, name)
    for name in ("resource", "fcntl"):
        monkeypatch.setitem(sys.modules, name, None)
    memory = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=PEAK))
    process = psutil.Process
    monkeypatch.setattr(psutil, "Process", lambda pid=None: memory if pid is None else process(pid))
    fsync, kill = os.fsync, os.kill

    def flush(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(handle)

    def terminate(pid, number):
        assert pid == os.getpid(), "no signal reaches another process: it would be ended at once, with this as its code"
        kill(pid, number)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "kill", terminate)
    for name in ("replace", "rename", "unlink", "remove", "rmdir"):
        monkeypatch.setattr(os, name, _strict(name, getattr(os, name), refused))
    return refused


def _strict(name, action, refused):
    def strict(*paths, **options):
        if not options:
            for path in map(Path, paths):
                if _in_use(path.absolute()):
                    refused.append(path.name)
                    raise PermissionError(errno.EACCES, "Access is denied", str(path))
            if name == "rename" and Path(paths[1]).exists():
                raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", str(paths[1]))
        return action(*paths, **options)

    return strict


def _in_use(path: Path) -> bool:
    """Whether this process has the file, or one in the folder, open or mapped."""
    held = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    for handle in Path("/proc/self/fd").iterdir():
        try:
            held.add(str(handle.readlink()))
        except OSError:
            continue
    return any(Path(name.strip()).is_relative_to(path) for name in held if name.strip().startswith("/"))
