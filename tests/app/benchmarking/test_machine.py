"""Facts about the machine, and tables."""

import torch
from windows import windows  # noqa: F401 (a fixture)

from app.benchmarking.machine import machine_facts, markdown_table


def test_facts_include_versions_and_threads():
    facts = machine_facts()
    assert facts["torch"] == torch.__version__ and f"{torch.get_num_threads()} threads" in facts["processor"]


def test_no_load_average_on_windows(windows):  # noqa: F811
    assert "load average" not in machine_facts()


def test_markdown_table():
    assert markdown_table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"
