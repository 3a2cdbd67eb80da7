"""hra-diffusion bench."""

import argparse
import json
from threading import Timer

import pytest
from conftest import tiny_pipe, tiny_text_encoder
from flow_pipes import FLOW_PIPES

from app.benchmarking.calibrating import wait_for_measurement
from app.cli import main
from app.commands import bench
from training.config import TrainConfig
from training.runs import calibration, leases
from training.runs.index import Index


def test_results_are_used_for_predictions_and_a_method_that_fails_or_is_too_late_does_not_stop_the_others(
    tmp_path, capsys
):
    """HRA's rank is too large for a narrow base model, and no time is left for HOFT."""
    narrow = tiny_pipe(cross_attention_dim=4)
    narrow.register_modules(text_encoder=tiny_text_encoder(hidden_size=4))
    narrow.save_pretrained(tmp_path / "narrow")
    base = str(tmp_path / "narrow")
    given = ["--base", base, "--device", "cpu", "--minutes", "0", "--output", str(tmp_path)]
    assert main(["bench", *given, "--method", "hra", "lora", "hoft", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    hra, lora, hoft = found["methods"]
    table = bench.format_results(found)
    assert "rank 8 is too large" in hra["error"] and hra["step_seconds"] is None and hra["error"] in table
    assert hoft["step_seconds"] is None and "out of time" in hoft["error"]
    assert found["rounds"] == 1 and "one round" in table and "A picture of 25 denoising steps" in table
    assert lora["method"] == "lora" and not lora["error"] and "| lora |" in table
    assert lora["step_seconds"] > 0 and lora["of_the_base_alone"] > 0 and found["seconds_of_a_picture"] > 0
    assert found["machine"]["torch"] and found["machine"]["torch"] in table
    own = dict.fromkeys(("prediction_type", "rescale_zero_snr", "base_revision", "base_variant"))
    arguments = argparse.Namespace(base=base, device="cpu", dtype="float32", **own)
    stored = calibration.load(tmp_path, bench.default_config("lora", arguments))
    assert stored is not None and lora["peak_memory_bytes"] == stored.memory


@pytest.mark.parametrize("kind", FLOW_PIPES)
def test_transformers_are_measured_too(kind):
    pipe, config = FLOW_PIPES[kind](), TrainConfig.model_construct(options={"rank": 2}, batch_size=1)
    seconds = bench.time_steps(pipe, {"lora": config}, 1, rounds=1, minutes=1)
    assert seconds.keys() == {bench.BASE_ALONE, "lora", bench.IMAGE} and all(own[0] > 0 for own in seconds.values())


def test_bench_waits_for_a_measurement_of_the_page(tmp_path, capsys):
    index = Index(tmp_path)
    lease = leases.acquire(index, calibration.LEASE, "measure", "a measurement")
    Timer(0.5, leases.release, [index, lease]).start()
    wait_for_measurement(tmp_path, quiet=False)
    assert "waiting for another measurement" in capsys.readouterr().err and not calibration.is_measuring(tmp_path)
