"""Attacks on the served page over HTTP: no visitor breaks it for others, or sees what belongs to them."""

import contextlib
import json
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from attacker import GENERATE, Attacker
from PIL import Image, PngImagePlugin
from serving import serving

from app.web.event_bodies import MAX_WAITING
from hra_diffusion.generation.png import PNG_KEY

SCRIPT = "<img src=x onerror=alert(1)>"
WRONG = [
    None, True, -1, float("nan"), 2**70, SCRIPT, "\0", "\ud800", "../../etc/passwd", "x" * 30_000, [["toybox"]],
    [None, "cpu"], {"do": [], "key": {}, "at": "x"}, {"do": "restore", "key": "..", "run": "../x", "file": ".."},
]  # fmt: skip
"""Values of every JSON type, in place of what the page sends."""


@pytest.fixture(scope="module")
def site(trained, tmp_path_factory, base_folder):
    """A page with an adapter. ``output``: its folder."""
    output = shutil.copytree(trained, tmp_path_factory.mktemp("site") / "outputs")
    with serving(output, base_folder) as page:
        yield SimpleNamespace(page=page, output=output, url=page.local_url)


@pytest.fixture
def attacker(site):
    return Attacker(site.page)


def works(attacker):
    """Assert that the page opens and generates images."""
    assert attacker.web.get("/").status_code == 200 and attacker.web.get("config").json()["components"]
    assert attacker.images()


def takes_values(fn):
    """Whether a client decides anything about the event."""
    return fn.fn and (fn.collects_event_data or any(not isinstance(part, gr.State) for part in fn.inputs))


def shown(fn, output):
    """The HTML of an event's output."""
    values = zip(fn.outputs, output.get("data") or [], strict=False)
    return "".join(str(value) for part, value in values if isinstance(part, gr.HTML)) + str(output.get("error"))


def events(site):
    """The events about which a client decides anything."""
    return [fn for fn in site.page.fns.values() if takes_values(fn)]


def not_refused(site, value):
    """Send a value in place of every input to every event, as a visitor of its own; return what was not refused."""
    attacker, failed = Attacker(site.page), []
    for fn in events(site):
        status, output, said = attacker.outcome(fn, [value] * len(fn.inputs), value)
        if status not in (200, 400, 413) or (status == 200 and "error" in output and not output["error"]):
            failed.append((fn.name, str(value)[:40], status))  # Gradio names no reason for others than gr.Error
        if SCRIPT in shown(fn, output) + said:
            failed.append((fn.name, str(value)[:40], "unescaped"))
    return failed


def test_wrong_types_in_every_event_are_refused_and_the_page_works(site, attacker):
    assert len(events(site)) * len(WRONG) > 400
    with ThreadPoolExecutor(4) as pool:
        assert [failed for every in pool.map(lambda value: not_refused(site, value), WRONG) for failed in every] == []
    works(attacker)


def test_every_event_that_takes_values_checks_them(site):
    fns = events(site)
    assert len(fns) > 30 and [fn.name for fn in fns if not hasattr(fn.fn, "__wrapped__")] == []


@pytest.mark.parametrize("values", [[None, "cpu"], [["toybox"], "cpu"], ["toybox", "cuda"], ["/etc", "cpu"]])
def test_a_base_or_device_that_is_not_offered_changes_nothing(site, attacker, values):
    _, output, _ = attacker.outcome(attacker.function("change"), values)
    assert output["error"]
    works(attacker)


@pytest.mark.parametrize(
    "change", [{"fn_index": 99_999}, {"fn_index": "0"}, {"data": {}}, {"data": []}, {"session_hash": "../x"},
               {"session_hash": ["x"]}, {"trigger_id": "x"}],
)  # fmt: skip
def test_bodies_that_are_no_events_are_refused(attacker, change):
    change = {"data": ["sks", "dog"]} | change
    assert attacker.send(attacker.function("show_subject"), **change).status_code == 400


@pytest.mark.parametrize("body", ["", "[", "3", "[" * 100_000, '{"data": ' + "[" * 900 + "]" * 900 + "}"])
def test_bodies_that_are_no_json_objects_are_refused(attacker, body):
    for path in ("gradio_api/run/predict", "gradio_api/queue/join", "gradio_api/call/generate"):
        assert attacker.web.post(path, content=body).status_code == 400


def test_the_server_downloads_nothing_that_a_value_names(site, attacker):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.3)
        address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/x.png"
        for fn in events(site):
            file = {"path": address, "url": address, "meta": {"_type": "gradio.FileData"}}
            assert attacker.send(fn, [file] * len(fn.inputs), [{"deep": file}]).status_code == 400, fn.name
        with contextlib.suppress(TimeoutError):
            asked.append(elsewhere.accept())
    assert asked == []


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "{output}/Rex/config.yaml", "{output}/.gradio/../Rex/config.yaml", "file:///etc/passwd",
             "{output}/.gradio/link.png", "{output}/.gradio", "", "\0", 7],
)  # fmt: skip
def test_files_that_were_not_uploaded_are_refused(site, attacker, path):
    link = site.output / ".gradio" / "link.png"
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(site.output / "Rex" / "config.yaml")
    path = path.format(output=site.output) if isinstance(path, str) else path
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert attacker.send(attacker.function("load_settings"), [file]).status_code == 400


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({}, True),  # a program
        ({"origin": "{own}"}, True),
        ({"origin": "{own}", "sec-fetch-site": "same-origin"}, True),
        ({"origin": "http://elsewhere.example"}, False),
        ({"origin": "http://127.0.0.1:9999"}, False),  # another program of this machine
        ({"origin": "http://localhost:9999", "sec-fetch-site": "same-site"}, False),
        ({"origin": "null"}, False),
        ({"origin": "{own}", "sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, False),
    ],
)
def test_other_sites_change_nothing(site, attacker, headers, accepted):
    headers = {name: value.format(own=site.url.strip("/")) for name, value in headers.items()}
    answers = [
        attacker.web.post("gradio_api/upload", files={"files": ("x.txt", b"x")}, headers=headers),
        attacker.web.post("gradio_api/queue/join", json={}, headers=headers),
        attacker.web.post("login", data={}, headers=headers),
    ]
    assert [answer.status_code != 403 for answer in answers] == [accepted] * 3


def test_preflights_are_refused_and_links_to_the_page_are_not(site, attacker):
    asking = {"origin": "http://localhost:9999", "access-control-request-method": "POST"}
    assert attacker.web.options("gradio_api/upload", headers=asking).status_code == 405
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert attacker.web.get("/", headers=link).status_code == 200
    for path in ("config", f"gradio_api/file={site.output}/Rex/samples/x.png", "logout"):
        assert attacker.web.get(path, headers=link).status_code == 403
    inside = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    assert attacker.web.get("logout", headers=inside).status_code == 403, "an image in a message logs nobody out"


@pytest.mark.parametrize(
    "path",
    ["openapi.json", "docs", "gradio_api/openapi.json", "gradio_api/proxy=http://127.0.0.1/", "gradio_api/file=http://x/",
     "proxy=http://x", "gradio_api/runs", "monitoring", "monitoring/summary", "gradio_api/deep_link?session_hash=x",
     "gradio_api/stream/x/1/1/playlist.m3u8", "gradio_api/custom_component/x/client/x/x.js", "gradio_api/token",
     "gradio_api/dev/reload", "gradio_api/vibe-code", "gradio_api/file/etc/passwd", "gradio_api/profiling/traces",
     "gradio_api//file=/etc/passwd", "/gradio_api/file=/etc/passwd", "static/../../etc/passwd",
     "assets/..%2f..%2froutes.py"],
)  # fmt: skip
def test_paths_that_the_page_does_not_use_are_closed(attacker, path):
    assert attacker.web.get(path).status_code in (403, 404)
    assert attacker.web.post(path, json={}).status_code in (403, 404, 405)


def test_functions_of_components_are_never_called(site, attacker):
    """Gradio's image editor would keep whatever is sent to it in memory."""
    index = {"type": "layer", "index": str(10**9), "id": "x", "session_hash": "x", "fn_name": "accept_blobs"}
    for path in ("gradio_api/component_server", "gradio_api/component_server/"):
        answer = attacker.web.post(path, data={**index, "component_id": "1"}, files={"files": b"x" * 10**6})
        assert answer.status_code == 200 and answer.json() is None
    editors = [part for part in site.page.blocks.values() if isinstance(part, gr.ImageEditor)]
    assert editors and not any(editor.blob_storage for editor in editors)


def test_a_range_brings_no_headers_of_the_request_back(site, attacker):
    (sample, *_) = (site.output / "Rex" / "samples").glob("*.png")
    answer = attacker.web.get(f"gradio_api/file={sample}", headers={"range": "bytes=0-5"})
    assert answer.status_code == 200 and answer.content == sample.read_bytes()
    assert "cookie" not in answer.headers and "hra_visitor" not in str(answer.headers)


def test_images_are_served_to_their_visitor_alone(site):
    ann, bob = Attacker(site.page), Attacker(site.page)
    (path, *_) = ann.images()
    assert ann.web.get(f"gradio_api/file={path}").status_code == 200
    assert bob.web.get(f"gradio_api/file={path}").status_code == 403
    assert httpx.get(f"{site.url}gradio_api/file={path}").status_code == 403


PRIVATE = ["config.yaml", "photos.json", "state.json", "events.jsonl", "Rex.safetensors", "photos/00.png",
           "checkpoints/000003/adapter.safetensors", "samples/../config.yaml", "samples/link.png", "samples", ".",
           "samples/%2e%2e/config.yaml", "samples/..%2fconfig.yaml", "samples\\..\\config.yaml", "SAMPLES/x.png",
           "samples/x.png%00", "/samples/../config.yaml"]  # fmt: skip


@pytest.mark.parametrize("name", PRIVATE)
def test_files_of_a_run_other_than_its_samples_are_not_served(site, attacker, name):
    link = site.output / "Rex" / "samples" / "link.png"
    if not link.is_symlink():
        link.symlink_to("../config.yaml")
    for path in (f"{site.output}/Rex/{name}", f"{site.output}/./Rex//{name}"):
        assert attacker.raw(f"GET /gradio_api/file={path} HTTP/1.1\r\nHost: localhost\r\n\r\n")[9:12] in (
            b"403",
            b"404",
        )


def test_65_requests_for_images_at_once_close_the_page_for_nobody(site, attacker):
    fn, session = attacker.function("generate"), "many"
    for _ in range(65):
        attacker.send(fn, GENERATE, session_hash=session)
    start = time.monotonic()
    works(Attacker(site.page))
    messages = [m["output"] for m in attacker.messages(session) if m["msg"] == "process_completed"]
    assert 0 < sum("data" in output for output in messages) < 65 and time.monotonic() - start < 60
    works(attacker)


def test_a_client_without_cookies_counts_by_its_address(site):
    """It would otherwise be a new visitor with every request."""
    fn = Attacker(site.page).function("generate")
    bodies = [
        {"data": [*GENERATE[:6], 50, *GENERATE[7:]], "fn_index": fn._id, "session_hash": f"n{n}"} for n in range(9)
    ]
    for body in bodies:
        assert httpx.post(f"{site.url}gradio_api/queue/join", json=body).status_code == 200
    attacker = Attacker(site.page)
    outputs = [m["output"] for body in bodies for m in attacker.messages(body["session_hash"])
               if m["msg"] == "process_completed"]  # fmt: skip
    assert any("still in the queue" in str(output.get("error")) for output in outputs)


def test_other_events_of_one_visitor_do_not_fill_the_queue(site, attacker, monkeypatch):
    fn, release = attacker.function("export"), threading.Event()
    monkeypatch.setattr(fn, "fn", lambda chosen, form: (gr.skip(), release.wait(60) and ""))  # a slow export
    answers = [attacker.send(fn, [None, "own"]).status_code for _ in range(70)]
    assert answers.count(200) <= MAX_WAITING + 1 and answers[-1] == 400
    works(Attacker(site.page))
    release.set()


def test_a_drawing_whose_visitor_left_is_cancelled(site, attacker):
    long = [*GENERATE[:2], 8, *GENERATE[3:6], 100, *GENERATE[7:]]
    attacker.send(attacker.function("generate"), long)
    with attacker.web.stream("GET", "gradio_api/queue/data", params={"session_hash": attacker.session}) as lines:
        for line in lines.iter_lines():
            if "process_generating" in line:
                break
    attacker.session = "after"
    assert len(attacker.images()) == 1, "none of the eight that were lost"


def test_an_adapter_added_after_the_start_is_used_at_once(site, attacker):
    shutil.copytree(site.output / "Rex", site.output / "Late", dirs_exist_ok=True)
    late = "Late/Rex.safetensors"
    for name, data in (
        ("generate", [[late], *GENERATE[1:]]),
        ("run", [[late], True, "a {subject}", 0, 1, 1.0, 2, False]),
    ):
        status, output, _ = attacker.outcome(attacker.function(name), data)
        assert status == 200 and "data" in output, output


@pytest.mark.parametrize(
    "key", ["../x.safetensors", "Rex/../../x.safetensors", "/etc/passwd", ".bin/x.safetensors", ""]
)
def test_adapters_outside_the_outputs_folder_are_refused(attacker, key):
    _, output, _ = attacker.outcome(attacker.function("generate"), [[key], *GENERATE[1:]])
    assert "no longer exists" in output["error"]


def test_a_request_of_hours_is_refused(attacker):
    values = [[], "a dog", 8, 3, True, "", 100, None, "ddim", 2048, 2048, "compose", 1, 1, 1, 1]
    assert "the largest request" in attacker.outcome(attacker.function("generate"), values)[1]["error"]


def test_names_in_messages_are_escaped(attacker, tmp_path):
    info = PngImagePlugin.PngInfo()
    saved = {"prompt": SCRIPT, "seed": 1, "negative_prompt": SCRIPT, "steps": 2, "guidance_scale": 1.0,
             "notes": [SCRIPT], "scheduler": SCRIPT, "width": 16, "height": 16, "adapters": {SCRIPT: 1.0},
             "base": SCRIPT}  # fmt: skip
    info.add_itxt(PNG_KEY, json.dumps(saved))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    file = attacker.upload("x.png", (tmp_path / "x.png").read_bytes())
    _, output, said = attacker.outcome(attacker.function("load_settings"), [file])
    assert "data" in output and said.count("&lt;img") == 2 and "<img" not in said


@pytest.mark.parametrize("name", [f"{SCRIPT}.png", '"><script>alert(1)</script>.png'])
def test_names_of_photos_are_escaped(attacker, tmp_path, name):
    Image.new("RGB", (300, 300)).save(tmp_path / "x.png")
    file = attacker.upload(name, (tmp_path / "x.png").read_bytes())
    fn = attacker.function("add")
    for given in (file, attacker.upload(name, b"no image")):
        status, output, said = attacker.outcome(fn, [[given]])
        assert status == 200 and "<script" not in shown(fn, output) + said and SCRIPT not in shown(fn, output) + said


@pytest.mark.parametrize("name", ["../../up.png", "..\\..\\up.png", "/tmp/up.png", "x" * 300 + ".png", "a\0b.png"])
def test_names_of_uploads_stay_in_their_folder(site, attacker, name):
    before = {path for path in site.output.parent.rglob("*") if ".gradio" not in path.parts}
    path = Path(attacker.upload(name, b"content")["path"])
    assert path.parent.parent == site.output / ".gradio" and path.read_bytes() == b"content"
    assert {path for path in site.output.parent.rglob("*") if ".gradio" not in path.parts} == before


def test_ten_thousand_files_in_one_upload_are_refused(attacker):
    files = [("files", (f"{n}.txt", b"x")) for n in range(10_000)]
    assert attacker.web.post("gradio_api/upload", files=files).status_code == 400
    assert attacker.web.get("/").status_code == 200


def test_300_open_streams_leave_the_page_open(site, attacker):
    host, port = site.url.removeprefix("http://").strip("/").split(":")
    streams = [socket.create_connection((host, int(port))) for _ in range(300)]
    try:
        for number, stream in enumerate(streams):
            stream.sendall(f"GET /gradio_api/heartbeat/h{number} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert all(b"200" in stream.recv(20) for stream in streams)
        works(attacker)
    finally:
        for stream in streams:
            stream.close()
