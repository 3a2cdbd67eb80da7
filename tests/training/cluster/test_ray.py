"""Runs on a real Ray cluster of two nodes on this machine."""

import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT, relative, weights

from app.commands.train import train_on_cluster
from hra_diffusion.errors import UserError
from training.loop import train
from training.runs import calibration, follow
from training.runs.calibration import Calibration
from training.runs.events import Checkpoint, Finished, Step
from training.runs.queue import Queue

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from training.cluster import dispatch  # noqa: E402

SHORT = {"prior_loss_weight": 0, "train_text_encoder": False, "sample_prompts": [], "sample_every": 0}
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


@pytest.fixture(scope="module")
def nodes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("OMP_NUM_THREADS", "1")  # as Ray sets it for a task of one CPU
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "3")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        nodes = Nodes()
        patch.setenv("RAY_ADDRESS", nodes.cluster.address)
        yield nodes
        ray.shutdown()
        nodes.cluster.shutdown()


def wait_for(condition, seconds=240):
    """Poll until the condition is true, and return its value. Fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return found


def trainers():
    """The processes that train, by (name of the run, process id of the node)."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[1:3] == ["-m", "training.worker"] and len(words) > 7 and (parent := process.parent()):
            found[words[4], parent.ppid()] = process
    return found


def suspended(on):
    """Suspend the process of a run on a node, once it has saved a checkpoint; return its name and the process."""

    def suspend():
        for (name, node), process in trainers().items():
            if on(node) and any(Path(process.cmdline()[3], name).glob("checkpoints/0*")):
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


@pytest.fixture(scope="module")
def survived(nodes, settings, tmp_path_factory):
    """Eight runs on two nodes. While they train, the object store is full, one run hangs, and a node is killed.

    Returns the queue, the configurations, and the names of the run that was killed with its node and of the one that
    hung, with their processes.
    """
    queue = Queue(tmp_path_factory.mktemp("survived"))
    configs = {f"r{seed}": settings(name=f"r{seed}", seed=seed, jobs="ray", **SHORT, **length(seed))
               for seed in range(7)}  # fmt: skip
    configs["pair"] = settings(name="pair", jobs="ray", processes=2, **SHORT)
    for config in configs.values():
        prepare(queue, config)
    kept = fill_object_store()
    raylet = nodes.other.all_processes["raylet"][0].process.pid
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as thread:
        patch.setattr(dispatch, "SILENCE_SECONDS", 30.0)
        done = thread.submit(dispatch.dispatch, queue.index, "ray")
        lost, process = suspended(lambda node: node == raylet)
        hung, stuck = suspended(lambda node: node != raylet)
        wait_for(lambda: events(queue, lost, "checkpoint") and events(queue, hung, "checkpoint"))
        nodes.cluster.remove_node(nodes.other, allow_graceful=False)
        done.result(timeout=400)
    del kept
    ray.shutdown()
    return queue, configs, (lost, process), (hung, stuck)


def length(seed):
    """The first three runs are long enough to be interrupted."""
    return {"steps": 120, "checkpoint_every": 20} if seed < 3 else {}


@pytest.mark.slow
def test_every_run_finishes_once(survived):
    queue, configs, *_ = survived
    assert {job.run.name: job.status for job in queue.jobs()} == dict.fromkeys(configs, "finished")
    for name, config in configs.items():
        run = queue.job(name).run
        assert run.finished and run.state.step == config.steps and run.state.device == "ray"
        assert len(events(queue, name, "finished")) == 1
        assert events(queue, name, "finished")[0]["adapter"] == str(run.adapter)
    assert not list((queue.output / ".cluster").glob("*")), "the copies in the output folder's own storage are deleted"


@pytest.mark.slow
def test_runs_of_a_killed_node_and_hanging_ones_go_on_from_a_checkpoint(survived):
    queue, _, *interrupted = survived
    for name, process in interrupted:
        steps = [event["step"] for event in events(queue, name, "step")]
        again = [after for before, after in pairwise(steps) if after != before + 1]
        assert len(events(queue, name, "phase")) > 4, "two attempts"
        assert again == [] or all(step % 20 == 1 and step > 1 for step in again), "none starts over"
        assert not process.is_running(), "the first attempt has ended"


@pytest.mark.slow
def test_the_weights_are_those_of_undisturbed_runs(survived, tmp_path):
    queue, configs, (lost, _), (hung, _) = survived
    for name in {lost, hung, "r6"} - {"pair"}:
        undisturbed = weights(train(configs[name], tmp_path))
        assert (weights(queue.job(name).run.adapter) == undisturbed).all(), name
    two = configs["pair"].model_copy(update={"name": "two", "gradient_accumulation_steps": 2})
    assert relative(weights(queue.job("pair").run.adapter), weights(train(two, tmp_path))) < 1e-3


@pytest.mark.slow
def test_the_command_line_follows_a_run_while_the_head_restarts(nodes, settings, tmp_path, monkeypatch):
    """The worker of the cluster is a process of its own here; it ends with the head, and another one is started."""
    monkeypatch.setattr(follow, "START_SECONDS", 10.0)
    config = settings(name="Rex", jobs="ray", steps=120, checkpoint_every=20, **SHORT)
    seen = []

    def restart_head(event):
        if isinstance(event, Checkpoint) and not any(isinstance(earlier, Checkpoint) for earlier in seen):
            nodes.restart()
        seen.append(event)

    calibration.save(Calibration(memory=2**29), calibration.result_path(tmp_path, config))
    with ThreadPoolExecutor(1) as thread:
        thread.submit(suspended, lambda node: True)  # or it may finish before the head is gone
        train_on_cluster(config, tmp_path, [restart_head], resume=False)
    assert Queue(tmp_path).job("Rex").run.finished
    steps = [event.step for event in seen if isinstance(event, Step)]
    assert steps[-1] == 120 and len([event for event in seen if isinstance(event, Finished)]) == 1
    assert len(steps) < 2 * 120, "it went on from a checkpoint"
    assert (weights(tmp_path / "Rex" / "Rex.safetensors") == weights(train(config, tmp_path / "undisturbed"))).all()


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
