"""A client of the served page that sends what a browser would not."""

import itertools
import json
import re
import socket
from typing import Any

import gradio as gr
import httpx

GENERATE = [[], "a dog", 1, 3, True, "", 2, None, "ddim", None, None, "compose", 1, 1, 1, 1]
"""Values of the Generate tab: one small image."""
_sessions = itertools.count()


class Attacker:
    """A visitor with a cookie, who calls the page's events directly."""

    def __init__(self, page: gr.Blocks):
        self.page, self.url, self.session = page, page.local_url, f"s{next(_sessions)}"
        self.web = httpx.Client(base_url=page.local_url, timeout=60)
        self.web.get("/")

    def function(self, name: str) -> Any:
        """The first registered event whose handler has this name."""
        return next(fn for fn in self.page.fns.values() if fn.fn and fn.name == name)

    def send(self, fn: Any, data: list[Any], event_data: Any = None, **more: Any) -> httpx.Response:
        """Call an event as the page's script does."""
        path = "gradio_api/run/predict" if fn.queue is False else "gradio_api/queue/join"
        body = {"data": data, "fn_index": fn._id, "session_hash": self.session, "event_data": event_data}
        return self.post(path, body | more)

    def post(self, path: str, body: Any) -> httpx.Response:
        """Post a body with numbers and strings that JSON forbids."""
        return self.web.post(path, content=json.dumps(body), headers={"content-type": "application/json"})

    def messages(self, session: str | None = None) -> list[dict[str, Any]]:
        """What the server says about the events of a session, until they have ended."""
        found = []
        with self.web.stream("GET", "gradio_api/queue/data", params={"session_hash": session or self.session}) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:"):
                    found.append(json.loads(line[5:]))
        return found

    def outcome(self, fn: Any, data: list[Any], event_data: Any = None, **more: Any) -> tuple[int, dict[str, Any], str]:
        """Call an event. Returns the status, the output, and the messages shown meanwhile."""
        answer = self.send(fn, data, event_data, **more)
        if fn.queue is False or answer.status_code != 200:
            return answer.status_code, answer.json(), ""
        messages = [message for message in self.messages() if message.get("event_id") == answer.json()["event_id"]]
        said = " ".join(message["log"] for message in messages if message["msg"] == "log")
        return 200, next(m["output"] for m in messages if m["msg"] == "process_completed"), said

    def images(self) -> list[str]:
        """Generate an image. Returns the paths of all images of this visitor."""
        _, output, _ = self.outcome(self.function("generate"), GENERATE)
        return re.findall(r'src="gradio_api/file=([^"]+\.png)"', output["data"][0])

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Upload a file; returns it as a value of an event."""
        (path,) = self.web.post("gradio_api/upload", files={"files": (name, content)}).json()
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def raw(self, text: str, read: int = 4096) -> bytes:
        """Send bytes as they are, and read the start of the answer."""
        host, port = self.url.removeprefix("http://").strip("/").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(text.encode())
            return connection.recv(read)
