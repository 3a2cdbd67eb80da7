"""A local HTTP server that answers huggingface_hub (HF_ENDPOINT) for one model."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1" * 40


@contextlib.contextmanager
def fake_hub(
    name: str, folder: Path, license: str = "openrail", delay: float = 0.0, revision: str = "main", gated: bool = False
) -> Iterator[str]:
    """Serve ``folder`` as the model ``name``; yields the endpoint. ``delay``: seconds before each 64 KiB of a file.

    ``revision`` is its only one. ``gated``: files need the token "secret".
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = f"/{name}/resolve/{revision}/"
            if self.path.split("?")[0] in (f"/api/models/{name}", f"/api/models/{name}/revision/{revision}"):
                self.answer(json.dumps(facts(name, folder, license)).encode(), {"Content-Type": "application/json"})
            elif gated and self.path.startswith(asked) and self.headers["Authorization"] != "Bearer secret":
                self.answer(b"", {"X-Error-Code": "GatedRepo"}, 403)
            elif self.path.startswith(asked) and (file := self.file()).is_file():
                self.answer(file.read_bytes(), {
                    "ETag": f'"{etag(file)}"', "X-Repo-Commit": COMMIT, "X-Xet-Hash": etag(file),
                    "X-Xet-Refresh-Route": f"http://127.0.0.1:{server.server_port}/no-xet-storage",
                })  # fmt: skip
            else:
                other = self.path.startswith((f"/{name}/resolve/", f"/api/models/{name}/revision/"))
                code = (
                    "EntryNotFound" if self.path.startswith(asked) else "RevisionNotFound" if other else "RepoNotFound"
                )
                self.answer(b"not found", {"X-Error-Code": code}, 404)

        def do_HEAD(self):
            self.do_GET()

        def file(self):
            return folder / self.path.split("?")[0].removeprefix(f"/{name}/resolve/{revision}/")

        def answer(self, body, headers, status=200):
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                for start in range(0, len(body), 2**16):
                    time.sleep(delay)
                    self.wfile.write(body[start : start + 2**16])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def facts(name: str, folder: Path, license: str) -> dict:
    """The hub's metadata of a model, with the fields that are read here."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {
        "id": name,
        "sha": COMMIT,
        "gated": False,
        "cardData": {"license": license},
        "config": {"diffusers": json.loads(index.read_text())}
        if (index := folder / "model_index.json").exists()
        else {},
        "siblings": [{"rfilename": file.relative_to(folder).as_posix(), "size": file.stat().st_size} for file in files],
    }


def etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def online(endpoint: str, home: Path) -> dict[str, str]:
    """Environment of a process that asks this hub and has a cache of its own."""
    return {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}


def run_python(script, environment):
    """Run a script in a new process, since huggingface_hub reads its settings on import; returns its JSON output."""
    hidden = "from hra_diffusion import libraries as ours; ours.hide(ours.BITSANDBYTES, ours.PEFT)"  # as the program
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden}\n{script}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
