"""Safe by default: logins, host names, cookies, served files, escaping."""

import asyncio
import contextlib
import functools
import itertools
import os
import re
import socket
import stat
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from fastapi import HTTPException
from PIL import Image
from starlette.requests import cookie_parser
from visitors import Visitor

from app.cli import main
from app.web import guard, html, library_cards, logins, run_list, train_form
from app.web.context import COOKIE
from app.web.server import LOOPBACK
from hra_diffusion import files
from hra_diffusion.comparison.storage import Summary
from hra_diffusion.comparison.votes import Standing
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


@pytest.fixture
def answer(context):
    """Returns status and headers of a request through the guard, and the headers its application received."""
    return functools.partial(_answer, context)


def _answer(context, path="/", headers=(), hosts=frozenset({"localhost"}), method="GET"):
    sent, seen = [], {}

    async def application(scope, receive, send):
        seen.update({key.decode(): value.decode() for key, value in scope["headers"]})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    given = [(k.encode(), v.encode()) for k, v in headers]
    scope = {"type": "http", "path": path, "headers": given, "method": method}
    asyncio.run(guard.Guard(application, hosts, context)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), seen


@pytest.mark.parametrize("host", ["localhost", "localhost:7860", "LOCALHOST", "[::1]:7860", "127.0.0.1:80"])
def test_this_machines_names_are_answered(answer, host):
    assert answer(headers=[("host", host)], hosts=LOOPBACK)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil]", "[evil]", "[::1]evil", "evil@localhost", "localhost.evil.example", "", "[::1"]
)
def test_foreign_host_names_are_refused(answer, host):
    """A foreign name that resolves to this machine would let another site's scripts read the page."""
    assert answer(headers=[("host", host)], hosts=LOOPBACK)[0] == 403


def test_a_server_with_logins_answers_under_any_name(answer):
    assert answer(headers=[("host", "gpu.example:7860")], hosts=None)[0] == 200


def visitor_of(seen):
    return cookie_parser(seen["cookie"])[COOKIE]


def test_each_browser_gets_a_signed_cookie_and_a_content_security_policy(answer):
    _, headers, seen = answer(headers=[("host", "localhost")])
    cookie = headers[b"set-cookie"].decode()
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    assert "connect-src 'self'" in headers[b"content-security-policy"].decode()
    _, again, second = answer(headers=[("host", "localhost"), ("cookie", cookie.split(";")[0])])
    assert b"set-cookie" not in again and visitor_of(second) == visitor_of(seen)


@pytest.mark.parametrize("cut", [slice(-1), slice(1, None)])
def test_a_cookie_that_was_not_made_here_is_replaced(answer, cut):
    name, _, value = answer(headers=[("host", "localhost")])[1][b"set-cookie"].decode().split(";")[0].partition("=")
    for given in (f"{COOKIE}=chosen", f"{name}=chosen", f"{name}={value[cut]}", f"{name}=.", f"{name}=chosen.é"):
        _, headers, seen = answer(headers=[("host", "localhost"), ("cookie", given)])
        assert b"set-cookie" in headers and visitor_of(seen) not in ("", "chosen", value.partition(".")[0])


def test_a_cookie_of_an_earlier_version_keeps_its_folder(answer, context):
    context.visitor_folder(Visitor("abc")).mkdir(parents=True)
    _, headers, seen = answer(headers=[("host", "localhost"), ("cookie", f"{COOKIE}=abc")])
    assert b"set-cookie" not in headers and visitor_of(seen) == "abc"


@pytest.mark.parametrize("foreign", ['a={"x":1}', "name[0]=1", "a=b c", "=; a", f"{COOKIE}_01234567=other"])
def test_other_programs_cookies_create_no_new_visitor(answer, foreign):
    """All ports of a host share cookies."""
    _, headers, seen = answer(headers=[("host", "localhost")])
    own, visitor = headers[b"set-cookie"].decode().split(";")[0], visitor_of(seen)
    for given in (f"{foreign}; {own}", f"{own}; {foreign}"):
        _, headers, seen = answer(headers=[("host", "localhost"), ("cookie", given)])
        assert b"set-cookie" not in headers and visitor_of(seen) == visitor


def test_a_port_in_use_is_reported(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 1
    assert f"can't listen on 127.0.0.1, port {port}: it is in use" in capsys.readouterr().err


def test_an_uploaded_page_runs_no_scripts(answer):
    _, headers, _ = answer("/gradio_api/file=outputs/x.html", [("host", "localhost")])
    assert headers[b"content-security-policy"].decode().startswith("sandbox; default-src 'none'")


@pytest.mark.parametrize("umask", [0, 0o22])
def test_logins_are_never_readable_by_others(tmp_path, monkeypatch, umask):
    modes, file = [], tmp_path / "logins"
    move = files.move
    monkeypatch.setattr(files, "move", lambda old, new: (modes.append(old.stat().st_mode & 0o777), move(old, new)))
    before = os.umask(umask)
    try:
        logins.add_user(file, "ann", PASSWORD)
    finally:
        os.umask(before)
    assert modes == [0o600] and stat.S_IMODE(file.stat().st_mode) == 0o600 and [*tmp_path.iterdir()] == [file]


def test_logins_are_hashed_off_the_event_loop_for_known_and_unknown_names(tmp_path, monkeypatch):
    """A hash takes a fifth of a second: the page would stand still, and its absence would tell which names exist."""
    file, threads = tmp_path / "logins", []
    logins.add_user(file, "ann", PASSWORD)
    real = logins._hash
    monkeypatch.setattr(logins, "_hash", lambda *given: threads.append(threading.current_thread()) or real(*given))
    checker = logins.LoginCheck(file)

    async def attempts():
        return [await checker.check(name, PASSWORD) for name in ("ann", "eve")]

    assert asyncio.run(attempts()) == [True, False]
    assert len(threads) == 2 and threading.main_thread() not in threads


@pytest.mark.parametrize(
    ("names", "addresses", "allowed"),
    [(["ann"], range(99), logins.PER_NAME), ([str(n) for n in range(99)], ["192.0.2.1"], logins.PER_ADDRESS)],
)
def test_login_attempts_are_limited_per_name_and_per_address(tmp_path, monkeypatch, names, addresses, allowed):
    logins.add_user(tmp_path / "logins", "ann", PASSWORD)
    monkeypatch.setattr(logins, "_hash", lambda password, salt: bytes(64))
    checker, clock = logins.LoginCheck(tmp_path / "logins"), [0.0]
    monkeypatch.setattr(logins.time, "monotonic", lambda: clock[0])

    async def count():
        done = 0
        with contextlib.suppress(HTTPException):
            for name, address in itertools.product(names, addresses):
                logins.ADDRESS.set(str(address))
                await checker.check(name, "wrong")
                done += 1
        return done

    assert asyncio.run(count()) == allowed
    clock[0] += logins.PERIOD + 1
    assert asyncio.run(count()) == allowed, "a minute later"


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
                  html.render("train_photos", photos=[{"name": SCRIPT, "image": image, "warnings": {SCRIPT: SCRIPT}}],
                              selected="", coverage=SCRIPT),
                  html.render("train_crop", photo=image, messages=[SCRIPT])],
        "generate": [html.render("generate_images", images=[(SCRIPT, Path(SCRIPT), settings)], notes=[SCRIPT],
                                 actions={}, start=0, page=1, total=2),
                     html.render("prompt_used", prompt=SCRIPT, changed=True)],
        "compare": [html.render("compare_grid", labels=[SCRIPT], prompts=[SCRIPT], seeds=[SCRIPT], photos=[],
                                images=[image], scores=[[SCRIPT]], means=""),
                    html.render("compare_axes", rows=[(Path(SCRIPT), SCRIPT, SCRIPT)]),
                    html.render("compare_history", rows=[(SCRIPT, SCRIPT, Summary((SCRIPT,), (SCRIPT,), 1))], start=0,
                                page=1, total=1),
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
    row = {**context.library("", 1)[0], "name": SCRIPT, "base": SCRIPT}
    card = library_cards._card(context, row)
    assert {card["name"], card["base"]} == {SCRIPT}
    broken = [{"name": SCRIPT, "error": SCRIPT, "path": SCRIPT}]
    text = html.render("library_cards", cards=[card], chosen=None, broken=broken, more=0)
    facts = html.facts(fields.items())
    text += html.render("library_facts", name=SCRIPT, warning=SCRIPT, samples=[path], summary=facts, details="")
    assert "<script" not in text and text.count("&lt;script&gt;") > 5


def test_messages_are_escaped_in_one_place():
    """Gradio shows the text of gr.Info, gr.Warning and gr.Error as HTML."""
    said = [path.name for path in (ROOT / "app").rglob("*.py") if re.search(r"gr\.(Info|Warning|Error|Success)\b",
            path.read_text())]  # fmt: skip
    assert said == ["events.py"]
