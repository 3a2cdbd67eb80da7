"""Attacks on a page with logins over HTTP: nothing without a login, and nothing that belongs to another one."""

import shutil
from types import SimpleNamespace

import httpx
import pytest
from attacker import Attacker
from conftest import ROOT
from serving import serving

from app.web import logins

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def guarded(trained, tmp_path_factory, base_folder):
    """A page with logins, whose file lies in the outputs folder, and two visitors."""
    output = shutil.copytree(trained, tmp_path_factory.mktemp("guarded") / "outputs")
    for name in ("ann", "bob"):
        logins.add_user(output / "logins", name, PASSWORD)
    with serving(output, base_folder, auth=output / "logins") as page:
        yield SimpleNamespace(page=page, output=output, url=page.local_url, ann=Attacker(page), bob=Attacker(page))


def test_a_login_is_required(guarded):
    web = httpx.Client(base_url=guarded.url)
    for path in ("config", "gradio_api/info", "gradio_api/queue/status", "gradio_api/heartbeat/x", "gradio_api/app_id"):
        assert web.get(path).status_code == 401, path
    assert web.post("gradio_api/upload", files={"files": ("x", b"x")}).status_code == 401
    text = web.get("/").text
    assert "Rex" not in text and str(guarded.output) not in text
    assert web.post("login", data={"username": "ann", "password": "wrong"}).status_code == 400
    assert web.post("login", data={"username": "ann", "password": PASSWORD}).status_code == 200
    assert web.get("config").status_code == 200


def test_a_page_with_logins_answers_behind_a_proxy_of_this_machine(guarded):
    """It passes the public name on, by which Gradio addresses its files."""
    headers = {"host": "photos.example", "origin": "https://photos.example", "x-forwarded-proto": "https"}
    web = httpx.Client(base_url=guarded.url, headers=headers)
    assert web.post("login", data={"username": "bob", "password": PASSWORD}).status_code == 200
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in web.cookies.jar)  # secure, for the proxy's HTTPS
    found = web.get("config", headers={"cookie": cookies})
    assert found.status_code == 200 and found.json()["root"] == "https://photos.example"


def test_a_login_sees_its_own_images_alone(guarded):
    for name in ("ann", "bob"):
        data = {"username": name, "password": PASSWORD}
        assert getattr(guarded, name).web.post("login", data=data).status_code == 200
    (path, *_) = guarded.ann.images()
    assert [who.web.get(f"gradio_api/file={path}").status_code for who in (guarded.ann, guarded.bob)] == [200, 403]
    secrets = ("logins", "photos/Rex/0.jpg", ".salt", ".queue", "visitors", "../outputs/logins", "Rex/../logins",
               ".gradio/../logins", "%6cogins", "Rex/config.yaml")  # fmt: skip
    for secret in [*(guarded.output / name for name in secrets), ROOT / "pyproject.toml", "/etc/passwd"]:
        assert guarded.ann.web.get(f"gradio_api/file={secret}").status_code == 403, secret


def test_a_huge_login_is_refused_before_it_is_read(guarded):
    head = "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    start = f"{head}Content-Length: {150 * 2**20}\r\n\r\nusername=" + "x" * 100_000
    assert b"413" in guarded.ann.raw(start)[:20]
