"""The page with many runs and many visitors: what idle browsers cost, and how long visitors wait under load.

    python -m benchmarks.bench_page [--runs 1000] [--browsers 50] [--visitors 30] [--drawing 6] [--minutes 10]

First, an output folder with --runs finished runs of four checkpoints each is indexed and served to --browsers idle
browsers. Then --visitors browsers follow the page and reload it now and then for --minutes, while --drawing visitors
generate images on toybox one after another, each with a cookie of their own.
"""

import contextlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import psutil

import hra_diffusion as hra
from benchmarks.options import parse_options
from benchmarks.report import Report, Target, publish
from training import config as configs
from training.runs import catalog
from training.runs.index import Index
from training.runs.state import RunState

CHECKPOINTS = (50, 100, 150, 200)
POLL_SECONDS = 2.0
RELOAD_SECONDS = 20.0
IDLE_SECONDS = 30.0
STEPS = 10


@dataclass
class Visits:
    """What the visitors met: seconds by kind of request, errors, and images by visitor."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"poll": [], "page load": [], "images": []})
    errors: list[str] = field(default_factory=list)
    images: dict[int, int] = field(default_factory=dict)
    memory: list[float] = field(default_factory=list)


def main() -> None:
    args = parse_options(
        __doc__, {"minutes": 10.0}, {}, runs=1000, browsers=50, visitors=30, drawing=6
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        rows, targets = many_runs(Path(folder) / "many", args.runs, args.browsers)
        visits = under_load(Path(folder) / "load", args.visitors, args.drawing, args.minutes)
    more_rows, more_targets = load_results(visits)
    conditions = (
        f"{args.runs} runs of {len(CHECKPOINTS)} checkpoints, {args.browsers} idle browsers; then {args.visitors} "
        f"visitors following and {args.drawing} generating images of {STEPS} steps on toybox for {args.minutes:g} min"
    )
    raw = {"seconds": visits.seconds, "errors": visits.errors, "images": visits.images, "memory_mib": visits.memory}
    publish(Report(conditions, ("what", "figure"), rows + more_rows, targets + more_targets, raw=raw), args)


def many_runs(output: Path, runs: int, browsers: int) -> tuple[list[tuple[str, str]], list[Target]]:
    """Index and serve many runs; return rows and targets."""
    make_runs(output, runs)
    index, timings = Index(output), {}
    for name, scan in (("first", False), ("again", True)):
        start = time.perf_counter()
        catalog.scan_runs(index, force=True)
        catalog.scan_adapters(index, force=True)
        timings[name] = time.perf_counter() - start
        assert scan or index.value("SELECT count(*) FROM adapters") == runs * (1 + len(CHECKPOINTS))
    with serving(output) as (server, port):
        arguments = port, Visits(), IDLE_SECONDS + 10, float("inf")
        threads = [threading.Thread(target=follow, args=arguments) for _ in range(browsers)]
        idle = busy_part(server, IDLE_SECONDS)
        for thread in threads:
            thread.start()
        time.sleep(5)
        followed = busy_part(server, IDLE_SECONDS)
        for thread in threads:
            thread.join()
    rows = [
        ("indexing all files, the first time", f"{timings['first']:.2f} s"),
        ("looking for changed files", f"{1000 * timings['again']:.0f} ms"),
        ("the page without browsers", f"{100 * idle:.1f} % of a core"),
        (f"the page with {browsers} browsers", f"{100 * followed:.1f} % of a core"),
    ]
    return rows, [Target(f"part of a core with {browsers} idle browsers", followed, 0.05)]


def make_runs(output: Path, count: int) -> None:
    """Write finished runs whose adapters are links to one file."""
    pipe = hra.load_base("toybox")
    hra.attach(pipe, "hra", {"rank": 2}, name="Rex")
    output.mkdir()
    adapter = output / "Rex.safetensors"
    hra.save(pipe, adapter, "Rex")
    config = configs.parse({"name": "Rex", "photos": ["."], "class_noun": "toy"})
    for number in range(count):
        folder = output / f"run {number:04d}"
        for step in CHECKPOINTS:
            (folder / "checkpoints" / f"{step:06d}").mkdir(parents=True)
            os.link(adapter, folder / "checkpoints" / f"{step:06d}" / "adapter.safetensors")
        os.link(adapter, folder / f"{folder.name}.safetensors")
        state = RunState(status="finished", step=CHECKPOINTS[-1], steps=CHECKPOINTS[-1])
        (folder / "state.json").write_text(state.model_dump_json(), encoding="utf-8")
        if number == 0:
            configs.write(config.model_copy(update={"name": folder.name}), folder / "config.yaml")
        else:
            shutil.copyfile(output / "run 0000" / "config.yaml", folder / "config.yaml")
    adapter.unlink()


@contextlib.contextmanager
def serving(output: Path) -> Iterator[tuple[psutil.Process, int]]:
    """Serve an output folder in a process of its own; yields it and its port once the base model is loaded."""
    command = [sys.executable, "-m", "app.cli", "app", "--output", str(output), "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    try:
        line = next(line for line in process.stdout if " is at http://" in line)
        port = int(line.rstrip().rstrip("/").rpartition(":")[2])
        get(port, "/")
        time.sleep(20)  # the base model loads in the background
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait()


def busy_part(process: psutil.Process, seconds: float) -> float:
    """Return the part of one core that a process uses during some seconds."""
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - before) / seconds


def get(port: int, path: str, connection: http.client.HTTPConnection | None = None) -> bytes:
    """Return the body of a page. Raises OSError for an error status."""
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise OSError(f"{path}: status {response.status}")
    return body


def follow(port: int, visits: Visits, seconds: float, reload_seconds: float = RELOAD_SECONDS) -> None:
    """Follow the page as an open browser does, and reload it now and then."""
    end, reload_at = time.monotonic() + seconds, time.monotonic() + reload_seconds
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while time.monotonic() < end:
        paths = {"poll": ["/pulse"]} | ({"page load": ["/", "/config"]} if time.monotonic() > reload_at else {})
        for kind, pages in paths.items():
            start = time.perf_counter()
            try:
                for path in pages:
                    get(port, path, connection)
            except (OSError, http.client.HTTPException) as error:
                visits.errors.append(f"{kind}: {error}")
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            visits.seconds[kind].append(time.perf_counter() - start)
        if "page load" in paths:
            reload_at = time.monotonic() + reload_seconds
        time.sleep(POLL_SECONDS)


def under_load(output: Path, visitors: int, drawing: int, minutes: float) -> Visits:
    """Serve visitors that follow the page and others that generate images."""
    visits, seconds = Visits(), 60 * minutes
    with serving(output) as (server, port):
        threads = [threading.Thread(target=follow, args=(port, visits, seconds)) for _ in range(visitors)]
        threads += [threading.Thread(target=draw, args=(port, visits, seconds, i)) for i in range(drawing)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            visits.memory.append(round(server.memory_info().rss / 2**20, 1))
            time.sleep(5)
    return visits


def draw(port: int, visits: Visits, seconds: float, number: int) -> None:
    """Generate one image after another through the page's API, as one visitor."""
    from gradio_client import Client

    client = Client(f"http://127.0.0.1:{port}", verbose=False, headers={"cookie": new_cookie(port)})
    end, visits.images[number] = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        start = time.perf_counter()
        try:
            client.predict(
                [], "a red robot on the beach", 1, number, True, "", STEPS, None, "dpm++", None, None, "compose", 1, 1,
                1, 1, api_name="/generate",
            )  # fmt: skip
        except Exception as error:  # any kind counts
            visits.errors.append(f"images: {error}")
            time.sleep(1)
        else:
            visits.seconds["images"].append(time.perf_counter() - start)
            visits.images[number] += 1


def new_cookie(port: int) -> str:
    """Return the cookie that the page gives to a new visitor."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/")
    return (connection.getresponse().getheader("set-cookie") or "").partition(";")[0]


def load_results(visits: Visits) -> tuple[list[tuple[str, str]], list[Target]]:
    """Return rows and targets of the load."""
    images, quarter = list(visits.images.values()), len(visits.memory) // 4
    early, late = (median(part) for part in (visits.memory[quarter : 2 * quarter], visits.memory[-quarter:]))
    rows = [
        (
            f"{kind}, median and 95th percentile of {len(values)}",
            f"{median(values):.3f}, {p95(values):.3f} s",
        )
        for kind, values in visits.seconds.items()
    ]
    rows += [
        ("errors", str(len(visits.errors))),
        ("images by visitor", f"{min(images)} to {max(images)}"),
        ("memory of the page: second quarter, last, peak", f"{early:.0f}, {late:.0f}, {max(visits.memory):.0f} MiB"),
    ]
    targets = [
        Target("errors under load", len(visits.errors), 0),
        Target("fewest ÷ most images of a visitor", min(images) / max(images), 0.7, at_least=True),
        Target("memory in the last quarter ÷ in the second", late / early, 1.1),
        Target("95th percentile of a poll under load, s", p95(visits.seconds["poll"]), 1.0),
        Target("95th percentile of a page load under load, s", p95(visits.seconds["page load"]), 3.0),
    ]
    return rows, targets


def p95(values: Sequence[float]) -> float:
    """Return the 95th percentile."""
    return quantiles(values, n=20)[-1]


if __name__ == "__main__":
    main()
