"""The server on a local Ray cluster: two replicas, one of which is killed under load.

pip install 'ray[serve]' && pytest -m slow tests/slow/test_serve_on_ray.py
"""

import base64
import io
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

pytestmark = pytest.mark.slow
STEPS, PORT = 3, 8765


@pytest.fixture
def address(tmp_path, base_folder):
    ray = pytest.importorskip("ray", reason="needs ray[serve]")
    serve = pytest.importorskip("ray.serve", reason="needs ray[serve]")
    from app.serving.replicas import ClusterOptions, application

    for name in ADAPTERS:
        save_adapter(tmp_path / "adapters" / f"{name}.safetensors", ADAPTERS[name])
    ray.init(num_cpus=2, include_dashboard=False)
    serve.start(http_options={"port": PORT})
    options = ClusterOptions(
        adapters=tmp_path / "adapters", pictures=tmp_path / "served", base=str(base_folder), device="cpu",
        min_replicas=2, max_replicas=2,
    )  # fmt: skip
    serve.run(application(options))
    yield f"http://127.0.0.1:{PORT}"
    serve.shutdown()
    ray.shutdown()


def test_a_killed_replica_gives_nobody_a_wrong_picture(address, tmp_path):
    pipe, names = tiny_pipe(), list(ADAPTERS)
    alone = {}
    for name in names:
        hra.load(pipe, tmp_path / "adapters" / f"{name}.safetensors")
        alone[name] = hra.generate(pipe, "a {subject}", {name: 1.0}, 5, settings=Settings(steps=STEPS))[0]
        hra.detach(pipe)

    def ask(number):
        name = names[number % len(names)]
        body = {"model": name, "prompt": "a {subject}", "seed": 5, "steps": STEPS}
        headers = {"serve-multiplexed-model-id": name}
        return name, httpx.post(f"{address}/v1/images/generations", json=body, headers=headers, timeout=120)

    assert ask(0)[1].status_code == 200
    with ThreadPoolExecutor(16) as threads:
        asked = [threads.submit(ask, number) for number in range(60)]
        time.sleep(0.5)
        workers = psutil.Process().children(recursive=True)
        replicas = [worker for worker in workers if any("ServeReplica" in part for part in worker.cmdline())]
        assert len(replicas) == 2
        replicas[0].kill()
        answers = [one.result() for one in asked]
    drawn = [(name, answer) for name, answer in answers if answer.status_code == 200]
    assert len(drawn) >= 30 and {answer.status_code for _, answer in answers} <= {200, 500, 503}
    for name, answer in drawn:
        image = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(alone[name], dtype=int)).max() <= 1
