"""Safe by default: logins, host names, cookies, served files, escaping."""

import asyncio
import os
import socket
import stat
from pathlib import Path

import httpx
import pytest
from conftest import ROOT
from PIL import Image
from serving import serving

from app.cli import main
from app.web import guard, html, library_cards, logins, run_list, train_form
from app.web.context import COOKIE
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.comparison.votes import Standing
from hra_diffusion.library import BrokenAdapter, SavedAdapter
from training.runs.queue import Job
from training.runs.run_folder import Run

PASSWORD = "correct horse"


def test_a_login_is_a_salted_hash_that_only_the_files_owner_can_read(tmp_path):
    file = tmp_path / "logins"
    logins.add_user(file, "ann", PASSWORD)
    logins.add_user(file, "bob", PASSWORD)
    text = file.read_text()
    assert PASSWORD not in text and len({line.split(":")[1] for line in text.splitlines()}) == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert logins.check(file, "ann", PASSWORD)
    for name, password in (("ann", "wrong"), ("eve", PASSWORD), ("", ""), ("ann", "")):
        assert not logins.check(file, name, password)
    logins.add_user(file, "ann", "another one")
    assert logins.check(file, "ann", "another one") and not logins.check(file, "ann", PASSWORD)
    with pytest.raises(ValueError, match="at least 8"):
        logins.add_user(file, "carl", "short")


def test_a_damaged_login_file_is_reported(tmp_path):
    file = tmp_path / "logins"
    with pytest.raises(ValueError, match="has no logins"):
        logins.require_logins(file)
    file.write_text("ann:secret\n")
    with pytest.raises(ValueError, match="line 1 is not a login"):
        logins.require_logins(file)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "0.0.0.0"], "--auth-file FILE"),
        (["--share"], "add --auth-file FILE"),
        (["--add-user", "ann"], "--add-user needs --auth-file"),
    ],
)
def test_other_machines_need_a_login_file(flags, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["app", *flags]) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "outputs").exists()


def test_the_environment_cannot_share_the_page(tmp_path, monkeypatch):
    from app.web.server import prepare_environment

    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    prepare_environment(tmp_path)
    assert "GRADIO_SHARE" not in os.environ and "GRADIO_SERVER_NAME" not in os.environ
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def answer(path="/", headers=(), hosts=frozenset({"localhost"})):
    """Return status and headers of a request through the guard, and the headers its application received."""
    sent, seen = [], {}

    async def application(scope, receive, send):
        seen.update({key.decode(): value.decode() for key, value in scope["headers"]})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(k.encode(), v.encode()) for k, v in headers]}
    asyncio.run(guard.Guard(application, hosts)(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"]), seen


def test_only_known_host_names_are_answered():
    assert answer(headers=[("host", "localhost:7860")])[0] == 200
    assert answer(headers=[("host", "evil.example")])[0] == 403, "a foreign host name that resolves to this server"
    assert answer(headers=[("host", "evil.example")], hosts=None)[0] == 200


@pytest.mark.parametrize("path", ["/gradio_api/file=http://x", "/gradio_api/proxy=http://x", "/monitoring"])
def test_paths_that_fetch_from_other_hosts_are_blocked(path):
    assert answer(path, [("host", "localhost")])[0] == 403


def test_each_browser_gets_a_cookie_and_a_content_security_policy():
    _, headers, seen = answer(headers=[("host", "localhost")])
    cookie = headers[b"set-cookie"].decode()
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and cookie.split(";")[0] in seen["cookie"]
    assert "connect-src 'self'" in headers[b"content-security-policy"].decode()
    _, again, seen = answer(headers=[("host", "localhost"), ("cookie", f"{COOKIE}=abc")])
    assert b"set-cookie" not in again and seen["cookie"] == f"{COOKIE}=abc"


@pytest.mark.parametrize("foreign", ['a={"x":1}', "name[0]=1", "a=b c", "=; a"])
def test_other_programs_cookies_create_no_new_visitor(foreign):
    """All ports of a host share cookies."""
    for given in (f"{foreign}; {COOKIE}=abc", f"{COOKIE}=abc; {foreign}"):
        _, headers, seen = answer(headers=[("host", "localhost"), ("cookie", given)])
        assert b"set-cookie" not in headers and seen["cookie"] == given


def test_a_port_in_use_is_reported(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 1
    assert f"can't listen on 127.0.0.1, port {port}: it is in use" in capsys.readouterr().err


def test_an_uploaded_page_runs_no_scripts():
    _, headers, _ = answer("/gradio_api/file=outputs/x.html", [("host", "localhost")])
    assert headers[b"content-security-policy"].decode().startswith("sandbox; default-src 'none'")


def test_only_public_files_are_served(page, tmp_path):
    output, web = tmp_path / "outputs", httpx.Client(base_url=page.local_url)
    assert (output / ".salt").is_file(), "created at the start, not by the first visitors at the same time"
    (output / "photos" / "Rex").mkdir(parents=True)
    secret, shown = output / "photos" / "Rex" / "1.jpg", output / "Rex.txt"
    secret.write_text("private")
    shown.write_text("shown")
    outside = tmp_path / "outside.txt"
    outside.write_text("private")
    assert web.get(f"gradio_api/file={shown}").text == "shown"
    for path in (secret, outside, ROOT / "pyproject.toml", output / ".." / "outside.txt", "/etc/passwd"):
        assert web.get(f"gradio_api/file={path}").status_code == 403, path
    text = web.get("/").text
    assert "fonts.googleapis" not in text and "https://cdn" not in text


def test_a_login_is_required(tmp_path, base_folder):
    file = tmp_path / "logins"
    logins.add_user(file, "ann", PASSWORD)
    with serving(tmp_path / "outputs", base_folder, auth=file) as page:
        web = httpx.Client(base_url=page.local_url)
        assert web.get("config").status_code == 401
        assert web.post("login", data={"username": "ann", "password": "wrong"}).status_code == 400
        assert web.post("login", data={"username": "ann", "password": PASSWORD}).status_code == 200
        assert web.get("config").status_code == 200


SCRIPT = "<script>alert(1)</script>"


def test_every_name_on_the_page_is_escaped(context):
    """Names of adapters, subjects, base models, files and runs; prompts, captions, labels and messages."""
    settings = {"prompt": SCRIPT, "seed": SCRIPT, "notes": [SCRIPT]}
    job = Job(Run(context.output / "<script>"), "waiting", 0, 6, place=1)
    image = Image.new("RGB", (8, 8))
    shown = {
        "parts": [html.badge(SCRIPT), html.note(SCRIPT), html.note([SCRIPT, SCRIPT]), html.image(image, SCRIPT),
                  html.button(SCRIPT, SCRIPT, key=SCRIPT), html.facts([(SCRIPT, SCRIPT)]), html.step_title(1, SCRIPT),
                  html.empty_state(SCRIPT, SCRIPT), html.progress_bar(0.5, SCRIPT)],
        "runs": [run_list.show_runs([job]), html.render("status_bar", running=None, died=job)],
        "train": [train_form.show_subject(SCRIPT, SCRIPT), html.render("train_captions", lines=[SCRIPT]),
                  html.render("train_photos", photos=[{"name": SCRIPT, "image": image, "badges": [SCRIPT]}],
                              selected="")],
        "generate": [html.render("generate_images", images=[(Path(SCRIPT), settings)], notes=[SCRIPT], actions={}),
                     html.render("prompt_used", prompt=SCRIPT, changed=True)],
        "compare": [html.render("compare_grid", labels=[SCRIPT], prompts=[SCRIPT], seeds=[SCRIPT], photos=[],
                                images=[image], scores=[[SCRIPT]], means=""),
                    html.render("standings", revealed=True, count=1, threshold=1,
                                tables=[(SCRIPT, [Standing(SCRIPT, 1, 1, 0, 1)])])],
        "library": [html.render("library_bin", entries=[(SCRIPT, SCRIPT)]),
                    html.render("library_binned", name=SCRIPT, key=SCRIPT)],
    }  # fmt: skip
    for tab, pieces in shown.items():
        for piece in pieces:
            assert "<script" not in piece and "&lt;script&gt;" in piece, (tab, piece)


def test_names_inside_an_adapter_file_are_escaped(context):
    """An imported file may hold any text in its metadata."""
    path = context.adapter_path("Rex/Rex.safetensors")
    fields = {"name": SCRIPT, "base": SCRIPT, "subject": SCRIPT}
    info = read_info(path).model_copy(update=fields)
    saved = SavedAdapter(path, info)
    card = library_cards._card(context, saved)
    assert {card["name"], card["base"]} == {SCRIPT}
    text = html.render("library_cards", cards=[card], chosen=None, broken=[BrokenAdapter(path, SCRIPT)])
    facts = html.facts(fields.items())
    text += html.render("library_facts", name=SCRIPT, warning=SCRIPT, samples=[path], summary=facts, details="")
    assert "<script" not in text and text.count("&lt;script&gt;") > 5
