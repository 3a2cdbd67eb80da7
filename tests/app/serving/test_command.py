"""hra-diffusion serve as a command: keys, refusals, a whole server in a process of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
from conftest import ROOT
from picture_server import wait_until

from app.cli import main


def test_keys_are_printed_once_and_stored_as_hashes(tmp_path, capsys):
    file = tmp_path / "keys.json"
    add = ["serve", "--keys", str(file), "--add-key"]
    assert main([*add, "alice", "--key-adapters", "alice-*", "--max-waiting", "3"]) == 0
    first = capsys.readouterr().out.strip()
    assert main([*add, "bob"]) == main([*add, "alice"]) == 0
    second = capsys.readouterr().out.split()[-1]
    keys = {key["name"]: key for key in json.loads(file.read_text())}
    assert list(keys) == ["bob", "alice"] and keys["alice"]["waiting"] == 32, "the later one replaces the first"
    assert first != second and first.startswith("hra-") and second not in file.read_text()
    assert os.name == "nt" or file.stat().st_mode & 0o077 == 0
    file.write_text('[{"name": "eve"}]')
    assert main([*add, "alice"]) == 1 and "0.sha256" in capsys.readouterr().err


def test_what_can_not_be_served_is_refused_before_the_base_is_loaded(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, reason in (
            (["--host", "0.0.0.0"], "add --keys FILE"),
            (["--add-key", "alice"], "--add-key needs --keys FILE"),
            (["--keys", str(tmp_path / "none.json"), "--port", "0"], "has no keys; create one"),
            (["--port", port], "it is in use"),
            (["--port", "0", "--batch-size", "0"], "batch_size"),
        ):
            assert main(["serve", "--base", "no-such-base", *options]) == 1
            assert reason in capsys.readouterr().err, options


def test_the_command_serves_until_it_is_interrupted(tmp_path, base_folder):
    """Then it refuses what waits, in the form of all its errors."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "serve", "--base", str(base_folder), "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command += ["--adapters", str(tmp_path / "adapters"), "--pictures", str(tmp_path / "served"), "--batch-size", "1"]
    address = f"http://127.0.0.1:{port}"
    with (
        subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, env=environment) as server,
        ThreadPoolExecutor(1) as threads,
    ):
        try:
            assert server.stdout.readline() == f"hra-diffusion serves at {address}/v1\n".encode()
            body = {"prompt": "a secret", "steps": 1}
            answer = httpx.post(f"{address}/v1/images/generations", json=body, timeout=60)
            assert answer.status_code == 200 and answer.json()["data"][0]["b64_json"]
            foreign = httpx.get(f"{address}/v1/models", headers={"host": "evil.example"})
            assert foreign.status_code == 400, "no site can point its name at this machine"
            body |= {"n": 10, "steps": 50}
            asked = threads.submit(httpx.post, f"{address}/v1/images/generations", json=body, timeout=60)
            wait_until(lambda: re.search(r"^hra_waiting_pictures [3-9]", httpx.get(f"{address}/metrics").text, re.M))
        finally:
            server.send_signal(signal.SIGINT)
        assert (asked.result().status_code, asked.result().json()["error"]["code"]) == (503, "stopping")
        assert server.wait(30) in (0, 130)
