"""A local HTTP server that answers huggingface_hub (HF_ENDPOINT) for one model."""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1" * 40


@contextlib.contextmanager
def fake_hub(name: str, folder: Path, license: str = "openrail", delay: float = 0.0) -> Iterator[str]:
    """Serve ``folder`` as the model ``name``; yields the endpoint. ``delay``: seconds before each 64 KiB of a file."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.split("?")[0] in (f"/api/models/{name}", f"/api/models/{name}/revision/main"):
                self.answer(json.dumps(facts(name, folder, license)).encode(), {"Content-Type": "application/json"})
            elif self.path.startswith(f"/{name}/resolve/main/") and (file := self.file()).is_file():
                self.answer(file.read_bytes(), {
                    "ETag": f'"{etag(file)}"', "X-Repo-Commit": COMMIT, "X-Xet-Hash": etag(file),
                    "X-Xet-Refresh-Route": f"http://127.0.0.1:{server.server_port}/no-xet-storage",
                })  # fmt: skip
            else:
                self.answer(b"not found", {"X-Error-Code": "RepoNotFound"}, 404)

        def do_HEAD(self):
            self.do_GET()

        def file(self):
            return folder / self.path.split("?")[0].removeprefix(f"/{name}/resolve/main/")

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
    index = json.loads((folder / "model_index.json").read_text())
    return {
        "id": name,
        "sha": COMMIT,
        "gated": False,
        "cardData": {"license": license},
        "config": {"diffusers": {"_class_name": index["_class_name"]}},
        "siblings": [{"rfilename": file.relative_to(folder).as_posix(), "size": file.stat().st_size} for file in files],
    }


def etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def online(endpoint: str, home: Path) -> dict[str, str]:
    """Environment of a process that asks this hub and has a cache of its own."""
    return {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
