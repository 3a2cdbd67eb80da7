"""The server as clients see it: OpenAI's own client draws, streams, lists, and reads errors."""

import base64
import io
import logging
import os
import re
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from conftest import distance, tiny_pipe
from picture_server import ADAPTERS, make_service, save_adapter, served, wait_until
from PIL import Image

import hra_diffusion as hra
from app.serving import keys, setup
from app.serving.errors import ApiError
from app.serving.keys import LOCAL, Usage, add_key
from app.serving.pictures import PictureFolder
from app.serving.schemas import ImageRequest
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.locks import lock_of

openai = pytest.importorskip("openai", reason="needs openai (make setup)")
STEPS = 3
FEW = {"steps": STEPS}


def client_of(address, key="none"):
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(address):
    return client_of(address)


def opened(data):
    return Image.open(io.BytesIO(base64.b64decode(data)))


def draw(client, model, seed, prompt="a {subject}", strength=1.0, steps=STEPS):
    if model == "base":
        prompt = "a dog"
    more = {"steps": steps, "seed": seed, "strength": strength}
    return opened(client.images.generate(model=model, prompt=prompt, extra_body=more).data[0].b64_json)


@pytest.fixture(scope="module")
def alone(adapters):
    """Draws a picture as ``generate`` does, with one attached adapter, each once."""
    pipe, known = tiny_pipe(), {}

    def drawn(model, seed, strength=1.0, steps=STEPS):
        key = model, seed, strength, steps
        if key not in known:
            if model == "base":
                request = Request("a dog", seed)
            else:
                hra.load(pipe, adapters / model / f"{model}.safetensors")
                request = Request("a sks dog", seed, ((model, strength),))
            known[key] = generate_batch(pipe, [request], Settings(steps=steps))[0]
            hra.detach(pipe)
        return known[key]

    return drawn


def same(one, other):
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1


def test_openais_client_draws_with_two_adapters_at_once(client, service, alone):
    """Requests that wait together are drawn in one batch, and each gets the picture it would get alone."""
    batches, pictures = drawn_so_far(service)
    asked = [(name, seed, strength) for seed, name in enumerate([*ADAPTERS, "base"]) for strength in (1.0, 0.5)]
    with ThreadPoolExecutor(len(asked)) as threads:
        with lock_of(service.engine.pipe):  # the first batch waits for the device, and the others for it
            drawn = [threads.submit(draw, client, model, seed, strength=strength) for model, seed, strength in asked]
            wait_until(lambda: drawn_so_far(service)[1] - pictures + len(service.engine._queue) == len(asked))
        images = [one.result() for one in drawn]
    assert drawn_so_far(service)[0] - batches <= 2
    assert all(same(image, alone(model, seed, s)) for image, (model, seed, s) in zip(images, asked, strict=True))
    assert distance(images[0], images[1]) > 1 and images[0].info["hra_diffusion"]


def drawn_so_far(service):
    """Return how many batches were begun, and how many pictures were in them."""
    samples = [sample for metric in service.engine.metrics.batch_sizes.collect() for sample in metric.samples]
    return [next(s.value for s in samples if s.name.endswith(name)) for name in ("_count", "_sum")]


def test_several_pictures_and_addresses(client, alone):
    found = client.images.generate(
        model="alice-rex", prompt="a {subject}", n=2, size="16x16", response_format="url", extra_body=FEW | {"seed": 3}
    )
    assert [one.seed for one in found.data] == [3, 4] and found.size == "16x16"
    for one in found.data:
        answer = httpx.get(one.url)
        assert answer.headers["cache-control"] == "no-store"
        assert same(Image.open(io.BytesIO(answer.content)), alone("alice-rex", one.seed))
    assert httpx.get(found.data[0].url[:-10] + "AAAAAA.png").status_code == 404


def test_only_the_servers_own_pictures_are_deleted(tmp_path):
    folder = PictureFolder(tmp_path)
    for name in (folder.add(b""), f".{folder.add(b'')}.1-2.tmp.png", "holiday.png"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (kept,) = {path.name for path in tmp_path.iterdir() if path.stat().st_mtime}
    assert {folder.add(b""), kept, "holiday.png"} == {path.name for path in tmp_path.iterdir()}


def test_a_stream_sends_previews_and_then_the_picture(client, alone):
    events = list(client.images.generate(
        model="alice-cat", prompt="a {subject}", stream=True, partial_images=2, extra_body={"steps": 6, "seed": 1}
    ))  # fmt: skip
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    images = [opened(event.b64_json) for event in events]
    assert same(images[2], alone("alice-cat", 1, steps=6)) and distance(images[0], images[2]) > 1


def test_models_health_metrics_and_documentation(client, address, service):
    models = client.models.list().data
    assert [model.id for model in models] == ["base", *sorted([*ADAPTERS, "foreign"])]
    assert client.models.retrieve("bob-cup").subject == "sks dog"
    assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}
    client.images.generate(model="alice-rex", prompt="a {subject}", size="16x16", extra_body=FEW)
    metrics = httpx.get(f"{address}/metrics").text
    assert 'hra_responses_total{status="200"}' in metrics and "alice" not in metrics and "sks" not in metrics
    assert f"hra_adapters {len(service.store)}.0\n" in metrics
    assert float(re.search(r"^hra_adapter_bytes (\S+)", metrics, re.M)[1]) == service.store.nbytes > 0
    assert "/v1/images/generations" in httpx.get(f"{address}/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    ("values", "status", "code"),
    [
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"model": "../alice-rex/alice-rex"}, 404, "model_not_found"),
        ({"model": "foreign"}, 409, "model_unusable"),
        ({"model": "broken"}, 409, "model_unusable"),
        ({"size": "4096x4096", "n": 10}, 413, "request_too_large"),
        ({"prompt": "x" * 100_000}, 413, "http_error"),
        ({"size": "17x16"}, 400, "invalid_value"),
        ({"size": "big"}, 400, "invalid_value"),
        ({"n": 11}, 400, "invalid_value"),
        ({"strenght": 1}, 400, "invalid_value"),
        ({"prompt": "a {subject}"}, 400, "invalid_value"),
        ({"stream": True, "n": 2}, 400, "invalid_value"),
    ],
)
def test_errors_have_codes(address, adapters, values, status, code):
    answer = httpx.post(f"{address}/v1/images/generations", json={"prompt": "a dog", "steps": 25} | values)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert str(adapters) not in answer.text and answer.headers["x-should-retry"] == "false"


def test_a_client_that_hangs_up_makes_room(service, address):
    """Its pictures leave the queue; a batch that nobody waits for ends."""
    long, drawn = {"prompt": "a dog", "steps": 200, "n": 10}, service.engine.metrics.pictures._value.get()
    with lock_of(service.engine.pipe):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/images/generations", json=long, timeout=0.3)
        with httpx.stream("POST", f"{address}/v1/images/generations", json=long | {"n": 1, "stream": True}):
            pass
        wait_until(lambda: all(picture.abandoned for picture in service.engine._queue))
    wait_until(lambda: not service.engine._queue and not any(service.usage._waiting.values()))
    assert service.engine.metrics.pictures._value.get() == drawn


def test_a_thousand_requests_get_their_own_picture_or_a_clear_answer(tmp_path, adapters, alone):
    """Of a queue of 24: everyone else is told at once to come back. Nobody gets another's picture."""
    service = make_service(tmp_path, adapters, max_queue=24)
    names = [*ADAPTERS, "base"]
    with (
        served(service) as address,
        ThreadPoolExecutor(40) as threads,
        httpx.Client(timeout=60, limits=httpx.Limits(max_connections=40)) as web,
    ):

        def ask(number):
            model = names[number % 4]
            prompt = "a dog" if model == "base" else "a {subject}"
            body = {"model": model, "prompt": prompt, "seed": number % 8, "steps": STEPS}
            return number, web.post(f"{address}/v1/images/generations", json=body)

        with lock_of(service.engine.pipe):
            asked = [threads.submit(ask, number) for number in range(1000)]
            wait_until(lambda: sum(one.done() for one in asked) >= 900, 60)
        answers = [one.result() for one in asked]
    drawn = [(number, answer) for number, answer in answers if answer.status_code == 200]
    refused = [answer for _, answer in answers if answer.status_code != 200]
    assert len(drawn) >= 24 and {answer.status_code for answer in refused} == {503}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    for number, answer in drawn:
        assert same(opened(answer.json()["data"][0]["b64_json"]), alone(names[number % 4], number % 8))


def test_a_picture_that_fails_does_not_fail_the_others_of_its_batch(tmp_path, adapters, alone):
    folder = tmp_path / "adapters"
    for name in ("alice-rex", "wild"):
        save_adapter(folder / name / f"{name}.safetensors", ADAPTERS["alice-rex"])
    service = make_service(tmp_path, folder)
    wild = service.store.get("wild", 1.0)
    for factors in wild.layers["unet"].values():
        factors.update[0].fill_(float("nan"))
    with served(service) as address, ThreadPoolExecutor(4) as threads:
        client = client_of(address)
        with lock_of(service.engine.pipe):
            drawn = [threads.submit(draw, client, name, 0) for name in ("alice-rex", "wild", "base", "alice-rex")]
            wait_until(lambda: drawn_so_far(service)[1] + len(service.engine._queue) == len(drawn))
        with pytest.raises(openai.UnprocessableEntityError, match="NaN"):
            drawn[1].result()
        assert same(drawn[2].result(), alone("base", 0)) and same(drawn[3].result(), drawn[0].result())


def test_keys_see_their_own_adapters_and_have_their_own_limits(tmp_path, adapters):
    file = tmp_path / "keys.json"
    secrets = {name: add_key(file, name, f"{name}-*", 6, 2) for name in ("alice", "bob")}
    assert not any(secret in file.read_text() for secret in secrets.values())
    with served(service := make_service(tmp_path, adapters, file)) as address:
        alice, bob = (client_of(address, secrets[name]) for name in ("alice", "bob"))
        assert [model.id for model in alice.models.list().data] == ["base", "alice-cat", "alice-rex"]
        hidden = asked_for(bob, "alice-rex")
        assert hidden.status_code == 404
        assert hidden.message == asked_for(bob, "alice-nix").message.replace("alice-nix", "alice-rex")
        with ThreadPoolExecutor(3) as threads, lock_of(service.engine.pipe):
            waiting = threads.submit(draw, alice, "alice-rex", 0)
            wait_until(lambda: service.usage._waiting["alice"] == 1)
            assert asked_for(alice, "alice-rex", n=2).status_code == 429, "at most two may wait"
            others = threads.submit(draw, bob, "bob-cup", 0)
            wait_until(lambda: service.usage._waiting["bob"] == 1)
        assert waiting.result() and others.result()
        for _ in range(5):
            draw(alice, "alice-rex", 0)
        late = asked_for(alice, "alice-rex")
        assert late.status_code == 429 and 3000 < int(late.response.headers["retry-after"]) <= 3600
        assert draw(bob, "bob-cup", 0), "the limit is each key's own"
        for headers in ({"authorization": "Bearer wrong"}, {"authorization": "Basic x"}, {}):
            assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 401
        file.write_text("[]")
        with pytest.raises(openai.AuthenticationError):
            bob.models.list()


def test_more_than_is_ever_possible_is_not_to_be_retried(tmp_path, adapters):
    """Nor does a request that is refused use up the pictures of the hour."""
    file = tmp_path / "keys.json"
    limits = {"two at once": (100, 2), "two an hour": (2, 100), "free": (100, 100)}
    secrets = {name: add_key(file, name, "*", *limit) for name, limit in limits.items()}
    with served(make_service(tmp_path, adapters, file, max_queue=4)) as address:
        clients = {name: client_of(address, secret) for name, secret in secrets.items()}
        for name, n in (("two at once", 3), ("two an hour", 3), ("free", 5)):
            refused = asked_for(clients[name], "base", n=n)
            assert refused.status_code == 413 and refused.response.headers["x-should-retry"] == "false", name
        for model, status in (("nobody", 404), ("broken", 409), ("foreign", 409)):
            assert asked_for(clients["two an hour"], model, n=2).status_code == status
        assert draw(clients["two an hour"], "base", 0) and draw(clients["two an hour"], "base", 0)
        assert asked_for(clients["two an hour"], "base").status_code == 429


def test_a_client_that_waits_as_long_as_it_is_told_is_served(monkeypatch):
    monkeypatch.setattr(keys, "HOUR", 0.5)
    usage, key = Usage(), LOCAL.model_copy(update={"pictures_per_hour": 3})
    usage.take(key, 1)
    time.sleep(0.2)
    usage.take(key, 2)
    with pytest.raises(ApiError) as refused:
        usage.take(key, 2)
    time.sleep(refused.value.retry_after + 0.01)
    usage.take(key, 2)
    assert ApiError(429, "", "", 1.2).headers == {"retry-after": "2"}


def asked_for(client, model, **values):
    with pytest.raises(openai.APIStatusError) as caught:
        client.images.generate(**{"model": model, "prompt": "a dog", "extra_body": FEW} | values)
    return caught.value


def test_a_stopping_server_refuses_and_finishes_its_batch(tmp_path, adapters):
    service = make_service(tmp_path, adapters, batch_size=1)
    with served(service) as address, ThreadPoolExecutor(3) as threads:
        client = client_of(address)
        with lock_of(service.engine.pipe):
            drawn = [threads.submit(draw, client, "base", seed) for seed in range(3)]
            wait_until(lambda: drawn_so_far(service)[1] == 1 and len(service.engine._queue) == 2)
            stopping = threading.Thread(target=service.engine.stop)
            stopping.start()
            wait_until(lambda: sum(one.done() for one in drawn) == 2)  # at once, not after the batch
        results = [one.exception() for one in drawn]
        stopping.join()
        assert results.count(None) == 1 and sum(isinstance(one, openai.InternalServerError) for one in results) == 2
        assert httpx.get(f"{address}/healthz").status_code == 503
        assert asked_for(client, "base").status_code == 503


def test_a_stopping_server_ends_a_batch_that_takes_too_long(tmp_path, adapters):
    service = make_service(tmp_path, adapters)
    with served(service) as address, ThreadPoolExecutor(1) as threads:
        drawn = threads.submit(asked_for, client_of(address), "base", extra_body={"steps": 200})
        wait_until(lambda: drawn_so_far(service)[0] == 1)
        service.engine.stop(0)
        assert drawn.result().status_code == 503 and drawn.result().code == "stopping"


def test_a_stopping_server_answers_before_a_long_step_ends(tmp_path, adapters):
    service = make_service(tmp_path, adapters)
    with served(service) as address, ThreadPoolExecutor(1) as threads:
        with lock_of(service.engine.pipe):  # the step lasts as long
            asked = threads.submit(asked_for, client_of(address), "base")
            wait_until(lambda: service.engine._batch)
            stopping = threading.Thread(target=service.engine.stop, args=[0])
            stopping.start()
            assert asked.result(30).code == "stopping"
        stopping.join()
        assert not service.engine.is_alive


def test_the_log_holds_no_prompts(tmp_path, base_folder):
    """Also that of a replica, which the command does not start."""
    options = setup.ServerOptions(adapters=tmp_path, pictures=tmp_path / "served", base=str(base_folder), device="cpu")
    logging.getLogger("diffusers").setLevel(logging.WARNING)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        service = setup.make_service(options)
        try:
            (picture,) = service.order(ImageRequest(prompt="secret " * 100, steps=1), LOCAL, lambda *_: None)
            assert picture.future.result()
        finally:
            service.engine.stop()
    assert not [warning for warning in shown if "secret" in str(warning.message)]
    assert not logging.getLogger("diffusers.pipelines").isEnabledFor(logging.WARNING), "it quotes what is cut off"


def test_a_changed_file_is_read_again_and_memory_is_bounded(tmp_path):
    folder = tmp_path / "adapters"
    path = save_adapter(folder / "a.safetensors")
    service = make_service(tmp_path, folder)
    try:
        first = service.store.get("a", 1.0)
        assert service.store.get("a", 1.0) is first
        save_adapter(path, seed=5)
        second = service.store.get("a", 1.0)
        assert second is not first
        service.store.memory = first.nbytes
        assert service.store.get("a", 0.5) is not second and len(service.store) == 1
        assert service.store.nbytes == first.nbytes
    finally:
        service.engine.stop()
