"""Runs on a real Ray cluster of two nodes on this machine."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT, relative, weights

from app.cli import main
from app.commands.train import train_on_cluster
from hra_diffusion import yaml_text
from hra_diffusion.errors import UserError
from training.loop import train
from training.runs import calibration, follow
from training.runs.calibration import Calibration
from training.runs.events import Checkpoint, Finished, Step
from training.runs.queue import Queue

ray = pytest.importorskip("ray")

from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from training.cluster import dispatch  # noqa: E402

SHORT = {"batch_size": 1, "prior_loss_weight": 0, "train_text_encoder": False, "sample_prompts": [], "sample_every": 0}
LONG = SHORT | {"steps": 20, "checkpoint_every": 5}
"""Long enough to be interrupted. Ray decides which runs are executed first: any of them may be."""
SILENCE = 10.0
"""Seconds without an event after which a run hangs."""
MARK = "HRA_DIFFUSION_TEST_CLUSTER"
"""Environment variable of the processes that a test's cluster starts, and of those that they start."""
STORE = 78 * 2**20
"""Bytes of a node's object store; Ray demands 75 MB."""


class Nodes:
    """A cluster of a head with two CPUs and a node with one."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self):
        node = {"object_store_memory": STORE, "memory": 2**34, "include_dashboard": False, "include_log_monitor": False}
        full = {"automatic_object_spilling_enabled": False, "local_fs_capacity_threshold": 0.0}
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={**node, "num_cpus": 2, "gcs_server_port": self.port, "_system_config": full},
        )
        self.other = self.cluster.add_node(num_cpus=1, **node)

    def restart(self):
        """Kill all nodes, and start others at the same address."""
        self.cluster.shutdown()
        self.start()


def kill_marked(mark):
    """Kill all processes of a test's cluster, also those whose parents have ended."""
    while found := [process for process in psutil.process_iter() if _mark(process) == mark]:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=5)


def _mark(process):
    with contextlib.suppress(psutil.Error):
        return process.environ().get(MARK)


@pytest.fixture(scope="module")
def nodes():
    mark, on_sigterm = uuid.uuid4().hex, signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # or Ray uses a token of the home folder
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # or Ray ends tasks when others fill the machine's memory
        patch.setenv("OMP_NUM_THREADS", "1")  # as Ray sets it for a task of one CPU
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "3")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        try:
            nodes = Nodes()
            patch.setenv("RAY_ADDRESS", nodes.cluster.address)
            yield nodes
            ray.shutdown()
            nodes.cluster.shutdown()
        finally:
            kill_marked(mark)
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has one of its own


def wait_for(condition, seconds=240):
    """Poll until the condition is true, and return its value. Fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)
    return found


def trainers():
    """The processes that train, by (name of the run, process id of the node)."""
    found = {}
    for process in psutil.process_iter(["cmdline", "ppid"]):
        words = process.info["cmdline"] or []
        if words[1:3] == ["-m", "training.worker"] and len(words) > 7:
            with contextlib.suppress(psutil.Error):
                found[words[4], psutil.Process(process.info["ppid"]).ppid()] = process
    return found


def suspended(on):
    """Suspend the process of a run on a node, once it has logged a checkpoint; return its name and the process."""

    def suspend():
        for (name, node), process in trainers().items():
            log = Path(process.info["cmdline"][3], name, "events.jsonl")
            with contextlib.suppress(OSError, psutil.Error):  # not begun, or ended meanwhile
                text = log.read_text()
                if on(node) and '"event": "checkpoint"' in text and f'"step": {LONG["steps"]},' not in text:
                    process.suspend()
                    return name, process
        return None

    return wait_for(suspend)


def events(queue, name, kind):
    log = queue.output / name / "events.jsonl"
    lines = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
    return [event for event in lines if event["event"] == kind]


def prepare(queue, config):
    """Queue a run whose memory was measured: a prediction takes seconds, and is not the subject here."""
    queue.add(config)
    calibration.save(Calibration(memory=2**29), calibration.result_path(queue.output, config))


def fill_object_store():
    """Return objects that leave no room for others."""
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    kept = [ray.put(np.zeros(2**20, np.uint8)) for _ in range(60)]
    with pytest.raises((ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)):
        kept += [ray.put(np.zeros(2**23, np.uint8)) for _ in range(12)]
    return kept


def test_eight_runs_survive_a_killed_node_a_hanging_process_and_a_full_object_store(nodes, settings, tmp_path):
    """In one test, so that no two processes of pytest run it."""
    queue = Queue(tmp_path / "outputs")
    configs = {f"r{i}": settings(name=f"r{i}", seed=i % 2, jobs="ray", **LONG) for i in range(7)}
    configs["pair"] = settings(name="pair", jobs="ray", processes=2, **SHORT)
    for config in configs.values():
        prepare(queue, config)
    interrupted = disturb(nodes, queue)
    every_run_finished_once(queue, configs)
    for name, process in interrupted:
        went_on_from_a_checkpoint(queue, name)
        assert not process.is_running(), "the first attempt has ended"
    undisturbed = [weights(train(configs[name], tmp_path)) for name in ("r0", "r1")]
    for name in configs.keys() - {"pair"}:
        assert (weights(queue.job(name).run.adapter) == undisturbed[configs[name].seed]).all(), name
    two = configs["pair"].model_copy(update={"name": "two", "gradient_accumulation_steps": 2})
    assert relative(weights(queue.job("pair").run.adapter), weights(train(two, tmp_path))) < 1e-3


def disturb(nodes, queue):
    """Execute the runs of a queue. Meanwhile the object store is full, a node is killed with a run, and one hangs.

    Returns the names and the processes of both runs.
    """
    kept = fill_object_store()
    raylet = nodes.other.all_processes["raylet"][0].process.pid
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "SILENCE_SECONDS", SILENCE)
        thread = threading.Thread(target=dispatch.dispatch, args=(queue.index, "ray"), daemon=True)
        thread.start()
        try:
            lost, process = suspended(lambda node: node == raylet)
            hung, stuck = suspended(lambda node: node != raylet)
            wait_for(lambda: events(queue, lost, "checkpoint") and events(queue, hung, "checkpoint"))
            nodes.cluster.remove_node(nodes.other, allow_graceful=False)
            thread.join(timeout=400)
            assert not thread.is_alive(), "waited too long"
        finally:
            patch.setattr(dispatch, "follow", sys.exit)  # of the thread: it would start a cluster after this one
            thread.join(timeout=60)
    del kept
    ray.shutdown()
    return (lost, process), (hung, stuck)


def every_run_finished_once(queue, configs):
    assert {job.run.name: job.status for job in queue.jobs()} == dict.fromkeys(configs, "finished")
    for name, config in configs.items():
        run = queue.job(name).run
        assert run.finished and run.state.step == config.steps and run.state.device == "ray"
        assert len(events(queue, name, "finished")) == 1
        assert events(queue, name, "finished")[0]["adapter"] == str(run.adapter)
    assert not list((queue.output / ".cluster").glob("*")), "the copies in the output folder's own storage are deleted"


def went_on_from_a_checkpoint(queue, name):
    steps = [event["step"] for event in events(queue, name, "step")]
    again = [after for before, after in pairwise(steps) if after != before + 1]
    assert len(events(queue, name, "phase")) > 4, "two attempts"
    assert again == [] or all(step % LONG["checkpoint_every"] == 1 and step > 1 for step in again), "none starts over"


def test_the_command_line_follows_a_run_while_the_head_restarts(nodes, settings, tmp_path, monkeypatch):
    """The worker of the cluster is a process of its own here; it ends with the head, and another one is started."""
    monkeypatch.setattr(follow, "START_SECONDS", 10.0)
    config = settings(name="Rex", jobs="ray", **LONG)
    seen = []

    def restart_head(event):
        if isinstance(event, Checkpoint) and not any(isinstance(earlier, Checkpoint) for earlier in seen):
            nodes.restart()
        seen.append(event)

    calibration.save(Calibration(memory=2**29), calibration.result_path(tmp_path, config))
    # or it may finish before the head is gone
    threading.Thread(target=suspended, args=(lambda node: True,), daemon=True).start()
    train_on_cluster(config, tmp_path, [restart_head], resume=False)
    assert Queue(tmp_path).job("Rex").run.finished
    steps = [event.step for event in seen if isinstance(event, Step)]
    assert steps[-1] == config.steps and len([event for event in seen if isinstance(event, Finished)]) == 1
    assert len(steps) < 2 * config.steps, "it went on from a checkpoint"
    assert (weights(tmp_path / "Rex" / "Rex.safetensors") == weights(train(config, tmp_path / "undisturbed"))).all()


@pytest.mark.slow  # the embedded base model is trained, drawn with and judged
def test_a_benchmark_trains_on_the_cluster(nodes, tmp_path, capsys):
    given = ["benchmark", "toybox", "--quick", "--subjects", "robot", "--methods", "lora", "--training-steps", "2",
             "--denoising-steps", "2"]  # fmt: skip
    seen = []
    thread = threading.Thread(target=lambda: seen.append(wait_for(trainers)), daemon=True)
    thread.start()
    more = ["--prompts", "1", "--seeds", "0", "--output", str(tmp_path), "--jobs", "ray", "--quiet", "--json"]
    assert main([*given, *more]) == 0
    facts = json.loads(capsys.readouterr().out)
    thread.join()
    assert [name for name, _ in seen[0]] == ["toybox-quick-robot-lora-0"]
    assert (
        facts["missing"] == [] and facts["costs"]["lora"]["seconds"] > 0 and "subject right" in facts["means"]["lora"]
    )
    assert Queue(tmp_path).jobs() == [] and not list((tmp_path / ".cluster").glob("*"))


def test_the_example_of_a_cluster_is_valid():
    """With machines at hand, and with those of a cloud in their place. Both are checked as ``ray up`` does."""
    text = (ROOT / "deploy" / "ray-cluster.yaml").read_text()
    local, cloud = text.split("# place of provider")
    in_cloud = yaml_text.parse("\n".join(line[2:] for line in cloud.splitlines()[1:]))
    for config, workers in ((yaml_text.parse(local), 2), (yaml_text.parse(local) | in_cloud, 8)):
        prepared = prepare_config(config)
        validate_config(prepared)
        assert prepared["max_workers"] == workers


def test_without_ray_a_run_is_refused(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--jobs ray needs Ray.*pip install 'hra-diffusion\[ray\]'"):
        Queue(tmp_path).add(settings(jobs="ray"))
    assert not (tmp_path / "Rex").exists() and sys.modules["ray"] is ray


def test_a_cluster_that_is_not_there_fails_the_run(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "CONNECT_SECONDS", 0.0)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    queue = Queue(tmp_path)
    queue.add(settings(jobs="ray://head:10001"))
    dispatch.dispatch(queue.index, "ray://head:10001")
    job = queue.job("Rex")
    assert job.status == "failed" and "there is no Ray cluster at ray://head:10001 (refused); start one" in job.reason


def refuse(*_, **__):
    raise ConnectionError("refused")


def test_the_planner_predicts_the_memory_that_a_run_asks_for(settings, tmp_path):
    config = settings()
    memory = dispatch.predicted_memory(config, Queue(tmp_path).index, "cpu")
    assert 2**28 < memory < 2**34
    both = config.model_copy(update={"jobs": "ray", "processes": 2})
    assert dispatch.predicted_memory(both, Queue(tmp_path).index, "cpu") == 2 * memory
