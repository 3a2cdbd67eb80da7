"""Training in two CPU processes: by the command line, on a quantised base, and with one process failing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, relative, weights

from training import config as configs
from training.loop import train
from training.runs.events import Step
from training.runs.run_folder import Run

SHORT = {"prior_loss_weight": 0, "train_text_encoder": False, "sample_prompts": [], "sample_every": 0}


@pytest.fixture(scope="module")
def results(tmp_path_factory, photos, base_folder, settings):
    """The output folder, and what both processes report of each scenario (see two_processes.py)."""
    output = tmp_path_factory.mktemp("processes")
    configs.write(settings(sample_every=0), output / "command.yaml")
    configs.write(configs.parse(values(photos, base_folder)), output / "c.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2",
               "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0",
               str(Path(__file__).with_name("two_processes.py")), str(output / "c.yaml"), str(output)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return output, [json.loads((output / f"results-{rank}.json").read_text()) for rank in (0, 1)]


def values(photos, base_folder, **changes):
    common = {"name": "Rex", "photos": [str(photos)], "class_noun": "dog", "base": str(base_folder), "device": "cpu",
              "resolution": 64, "steps": 4, "batch_size": 2, "checkpoint_every": 2, "learning_rate": 1e-2}  # fmt: skip
    return common | SHORT | changes


def test_two_processes_equal_two_accumulated_batches(results, settings, tmp_path):
    """``accelerate launch`` with two CPU processes averages gradients over different batches."""
    output, both = results
    printed = [[json.loads(line)["event"] for line in result["command"].splitlines()] for result in both]
    assert printed[0].count("finished") == 1 and printed[1] == [], "only the main process prints events"
    one = weights(train(settings(sample_every=0, gradient_accumulation_steps=2), tmp_path))
    two = weights(output / "command" / "Rex" / "Rex.safetensors")
    assert relative(two, one) < 1e-3, "equal up to rounding, which AdamW's first steps amplify"


def test_a_quantised_base_trains_as_with_accumulated_batches(results, photos, base_folder, tmp_path):
    """Its weights are buffers, which DistributedDataParallel would broadcast before every step."""
    output, (main, _) = results
    assert main["quantised"]["error"] == ""
    events = []
    config = configs.parse(values(photos, base_folder, base_weights="int8", gradient_accumulation_steps=2))
    one = train(config, tmp_path, [events.append])
    assert relative(weights(output / "quantised" / "Rex" / "Rex.safetensors"), weights(one)) < 1e-3
    losses = [event.loss for event in events if isinstance(event, Step)]
    assert main["quantised"]["losses"] == pytest.approx(losses, rel=1e-3), "means over the processes"


def test_out_of_memory_in_one_process_reduces_the_memory_of_both(results, photos, base_folder, tmp_path):
    output, both = results
    assert [result["memory"]["error"] for result in both] == ["", ""]
    (notice,) = both[0]["memory"]["notices"]
    assert "out of memory at step 2; continuing from the previous step with batch size 1" in notice
    assert len(both[0]["memory"]["losses"]) == 4
    run = Run(output / "memory" / "Rex")
    assert run.finished and run.config.batch_size == 1 and weights(run.adapter).isfinite().all()


def test_a_failure_of_another_process_ends_both_with_its_reason(results):
    output, both = results
    assert both[1]["failure"]["error"] == "ZeroDivisionError: division by zero"
    assert both[0]["failure"]["error"] == "PeerFailedError: process 1 failed: division by zero"
    state = Run(output / "failure" / "Rex").state
    assert (state.status, state.reason) == ("failed", "process 1 failed: division by zero")
    assert max(result["failure"]["seconds"] for result in both) < 60


def test_a_failure_of_the_main_process_ends_the_other(results):
    output, both = results
    assert [result["disk"]["error"] for result in both] == [
        f"FileError: {output}/disk/Rex/checkpoints/000002: no space",
        f"PeerFailedError: process 0 failed: {output}/disk/Rex/checkpoints/000002: no space",
    ]
    assert Run(output / "disk" / "Rex").state.status == "failed"
