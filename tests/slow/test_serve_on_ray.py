"""The server on a local Ray cluster: replicas are added under load, know their adapters, and one is killed.

pip install 'hra-diffusion[serve-ray]' && pytest -m slow tests/slow/test_serve_on_ray.py
"""

import base64
import io
import itertools
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
from conftest import tiny_pipe
from picture_server import ADAPTERS, save_adapter
from PIL import Image

import hra_diffusion as hra
from hra_diffusion.generation.requests import Settings

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve", reason="needs hra-diffusion[serve-ray]")

from app.serving.replicas import ClusterOptions, application  # noqa: E402

pytestmark = pytest.mark.slow
STEPS, NAMES = 3, list(ADAPTERS)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for name, method in ADAPTERS.items():
        save_adapter(folder / f"{name}.safetensors", method)
    return folder


@pytest.fixture(scope="module")
def alone(adapters):
    """The picture of each adapter, drawn without a server."""
    pipe, found = tiny_pipe(), {}
    for name in NAMES:
        hra.load(pipe, adapters / f"{name}.safetensors")
        found[name] = hra.generate(pipe, "a {subject}", {name: 1.0}, 5, settings=Settings(steps=STEPS))[0]
        hra.detach(pipe)
    return found


@pytest.fixture(scope="module")
def address(adapters, base_folder, tmp_path_factory):
    """A server of one or two replicas, each of which has one picture in a batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # or Ray stores a token in the home folder
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options={"port": port})
            options = ClusterOptions(
                adapters=adapters, pictures=tmp_path_factory.mktemp("served"), base=str(base_folder), device="cpu",
                batch_size=1, max_replicas=2,
            )  # fmt: skip
            serve.run(application(options))
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


def ask(address, name):
    """Ask for a picture by an adapter, preferably of a replica that has it in memory."""
    body = {"model": name, "prompt": "a {subject}", "seed": 5, "steps": STEPS}
    headers = {"serve-multiplexed-model-id": name}
    return name, httpx.post(f"{address}/v1/images/generations", json=body, headers=headers, timeout=120)


def running():
    """The number of replicas that are ready."""
    return serve.status().applications["default"].deployments["hra-diffusion"].replica_states.get("RUNNING", 0)


def right(name, answer, alone):
    """Whether the picture of an answer is that of its adapter."""
    image = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    return np.abs(np.asarray(image, dtype=int) - np.asarray(alone[name], dtype=int)).max() <= 1


def test_a_replica_is_added_while_requests_wait_and_shares_the_load(address):
    assert running() == 1
    end = time.monotonic() + 180
    with ThreadPoolExecutor(12) as threads:
        while running() < 2 or in_memory(address) != {2}:
            assert time.monotonic() < end, "waited too long"
            answers = threads.map(ask, itertools.repeat(address), NAMES[:2] * 12)
            assert {answer.status_code for _, answer in answers} == {200}


def test_a_request_reaches_the_replica_that_has_its_adapter(address):
    """Which is asked for so often that chance would load it into both."""
    for _ in range(12):
        assert ask(address, NAMES[2])[1].status_code == 200
        time.sleep(0.5)  # until the router knows
    assert in_memory(address) == {2, 3}


def in_memory(address):
    """How many adapters the replicas have in memory. Any of them may answer."""
    texts = (httpx.get(f"{address}/metrics").text for _ in range(30))
    return {float(re.search(r"^hra_adapters (\S+)", text, re.M)[1]) for text in texts}


def test_a_killed_replica_gives_nobody_a_wrong_picture(address, alone):
    with ThreadPoolExecutor(16) as threads:
        asked = [threads.submit(ask, address, NAMES[number % len(NAMES)]) for number in range(60)]
        time.sleep(0.5)
        workers = psutil.Process().children(recursive=True)
        replicas = [worker for worker in workers if any("ServeReplica" in part for part in worker.cmdline())]
        assert len(replicas) == 2
        replicas[0].kill()
        answers = [one.result() for one in asked]
    pictures = [(name, answer) for name, answer in answers if answer.status_code == 200]
    assert len(pictures) >= 30 and {answer.status_code for _, answer in answers} <= {200, 500, 503}
    assert all(right(name, answer, alone) for name, answer in pictures)
