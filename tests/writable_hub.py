"""A local HTTP server that takes uploads of huggingface_hub (HF_ENDPOINT), and keeps their files in memory."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextlib.contextmanager
def writable_hub(token: str) -> Iterator[tuple[str, dict[str, bytes], list[dict]]]:
    """Yield the endpoint, the files that were committed by "owner/name/path", and the repositories that were created.

    Requests need the token. Every file is stored in the commit itself, not in large-file storage.
    """
    files: dict[str, bytes] = {}
    created: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers["Authorization"] != f"Bearer {token}":
                return self.answer({"error": "You don't have the rights"}, 403)
            parts = self.path.split("?")[0].strip("/").split("/")
            if self.path == "/api/repos/create":
                created.append(json.loads(body))
                return self.answer({"url": f"{endpoint}/{created[-1]['organization']}/{created[-1]['name']}"})
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            repository, action = "/".join(parts[2:4]), parts[4]
            if action == "preupload":
                asked = json.loads(body)["files"]
                modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
                return self.answer({"files": modes})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[f"{repository}/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitUrl": f"{endpoint}/{repository}/commit/1", "commitOid": "1" * 40})

        def do_GET(self):
            self.answer({"id": "me/Rex", "sha": "1" * 40, "siblings": []})

        def answer(self, values, status=200):
            content = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield endpoint, files, created
    finally:
        server.shutdown()
        server.server_close()
