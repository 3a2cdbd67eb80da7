"""hra-diffusion bench: a table of this machine, and what it measured is what the page predicts by."""

import argparse
import json

from app.cli import main
from app.commands import bench
from training import calibration


def test_a_table_in_json_that_predictions_use(base_folder, tmp_path, capsys):
    given = [
        "--base",
        str(base_folder),
        "--device",
        "cpu",
        "--method",
        "hra",
        "--rounds",
        "1",
        "--output",
        str(tmp_path),
    ]
    assert main(["bench", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["methods"]
    assert row["method"] == "hra" and not row["error"]
    assert row["step_seconds"] > 0 and row["of_the_base_alone"] > 0 and found["seconds_of_a_picture"] > 0
    assert found["machine"]["torch"]
    arguments = argparse.Namespace(base=str(base_folder), device="cpu", dtype="float32")
    kept = calibration.known(tmp_path, bench.config("hra", arguments))
    assert kept is not None and row["peak_memory_bytes"] == kept.memory
    assert "| hra |" in bench.text(found) and found["machine"]["torch"] in bench.text(found)
