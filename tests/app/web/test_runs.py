"""The view of a run and the list of runs, without a browser."""

import shutil
from pathlib import Path

import gradio as gr
import pytest
from visitors import Visitor

from app.web import (
    library_cards,
    run_list,
    run_view,
    status_bar,
)
from app.web.context import AppContext
from hra_diffusion import trash
from training import config as configs
from training.runs.events import Best, Notice, Validated, to_json
from training.runs.queue import Queue
from training.runs.run_folder import Run


def test_a_finished_run_shows_losses_samples_and_next_steps(context):
    head, plot, rounds, log, *_ = run_view.refresh(context, "Rex", None)
    assert "Rex is ready" in head and "<svg" in plot and "polyline" in plot and "step 6 of 6" in log
    assert rounds.index("step 6") < rounds.index("step 3") < rounds.index("before"), (
        "newest first, the base's idea last"
    )
    assert rounds.count("Try this one") == 2
    seen = run_view.refresh(context, "Rex", None)[-2]
    assert all(
        isinstance(update, dict) and update.get("__type__") == "update"
        for update in run_view.refresh(context, "Rex", seen)
    )


def test_compare_selects_all_adapters_trained_on_the_same_photos(context):
    for name in ("Rex-lora", "Other"):
        shutil.copytree(context.output / "Rex", context.output / name)
        (context.output / name / "Rex.safetensors").rename(context.output / name / f"{name}.safetensors")
    other = Run(context.output / "Other")
    configs.write(other.config.model_copy(update={"photos": (Path("elsewhere"),)}), other.folder / "config.yaml")
    _, chosen = run_view.Events(context).open_compare("Rex", Visitor())
    assert sorted(chosen["value"]) == ["Rex-lora/Rex-lora.safetensors", "Rex/Rex.safetensors"]


def test_a_failed_run_shows_its_reason_and_advice(context):
    Run(context.output / "Rex").write_state("failed", 3, 6, reason="the loss became nan at step 4")
    head, _, _, log, _, *offers, _, _, _ = run_view.refresh(context, "Rex", None)
    assert "The run failed: the loss became nan" in head and "learning rate" in head
    assert "ready" not in head.lower() and "complete" not in (head + log).lower()
    buttons = ("stop", "sample_now", "resume", "again", "generate", "compare", "more")
    assert [button for button, offer in zip(buttons, offers, strict=True) if offer["visible"]] == ["again"]


def test_an_interrupted_run_can_be_resumed(context):
    Run(context.output / "Rex").write_state("running", 3, 6)
    jobs = context.queue.jobs()
    line = status_bar.show_status(None, jobs, 0, "")
    assert "interrupted" in line and 'data-do="resume"' in line
    assert "Resume continues" in run_view.refresh(context, "Rex", None)[0]


def test_the_training_state_of_a_finished_run_is_deleted_after_a_second_click(context):
    shown = run_list.show_runs(context.queue.jobs())
    assert 'data-do="drop-states" data-confirm="Really?' in shown
    run_list.act_on_run(context, "drop-states", "Rex")
    assert not Run(context.output / "Rex").states() and "drop-states" not in run_list.show_runs(context.queue.jobs())
    assert not run_view.refresh(context, "Rex", None)[11]["visible"], "it can't go on"


def test_a_failed_run_moves_to_the_bin_and_back(context, monkeypatch):
    with pytest.raises(ValueError, match="is finished"):
        run_list.act_on_run(context, "delete", "Rex")
    run = Run(context.output / "Rex")
    run.adapter.unlink()
    run.write_state("failed", 3, 6, reason="the loss became nan")
    assert 'data-do="delete"' in run_list.show_runs(context.queue.jobs())
    monkeypatch.chdir(context.output.parent)
    run_list.act_on_run(
        AppContext(Path(context.output.name), context.session, context.bases), "delete", "Rex"
    )  # as `make app` names it
    assert context.queue.jobs() == [] and "Rex" in library_cards.show_bin(context)
    (key,) = trash.keys(context.output)
    trash.restore(key, context.output)
    context.rescan()
    assert [(job.run.name, job.status, job.reason) for job in context.queue.jobs()] == [
        ("Rex", "failed", "the loss became nan")
    ]


def test_a_failure_reason_is_escaped(context):
    Run(context.output / "Rex").write_state("failed", 3, 6, reason="<script>alert(1)</script>")
    head, _, _, log, *_ = run_view.refresh(context, "Rex", None)
    assert "<script>" not in head + log and "&lt;script&gt;" in head


def test_a_finished_run_trains_on_for_more_steps(context, monkeypatch):
    monkeypatch.setattr(Queue, "start", lambda queue: None)  # no process
    run = Run(context.output / "Rex")
    *_, more, _, _, _ = run_view.refresh(context, "Rex", None)
    assert more["visible"] and [folder.name for folder in run.states()] == ["000006"]
    head, *_ = run_view.Events(context).go_on("Rex", "Rex", 4, Visitor())
    assert "Waiting" in head and context.queue.waiting() == ["Rex"]
    assert run.config.steps == run.state.steps == 10 and run.state.step == 6
    with pytest.raises(gr.Error, match="only a finished run"):
        run_view.Events(context).go_on("Rex", "Rex", 4, Visitor())
    context.queue.cancel("Rex")


def test_without_its_training_state_a_finished_run_offers_no_more_steps(context):
    context.queue.drop_states("Rex")
    *_, more, _, _, _ = run_view.refresh(context, "Rex", None)
    assert not more["visible"]


def test_validation_losses_are_plotted_and_the_best_checkpoint_has_its_reason(context):
    run, reason = Run(context.output / "Rex"), "step 3 may be better than the last: its validation loss is 0.1000"
    events = [Validated(0, 0.9), Validated(3, 0.1), Validated(6, 0.2), Best(3, reason), Notice(reason)]
    with (run.folder / "events.jsonl").open("a") as log:
        log.writelines(to_json(event) + "\n" for event in events)
    head, plot, rounds, *_ = run_view.refresh(context, "Rex", None)
    assert plot.count('<circle class="validation"') == 3 and "Validation loss (dashed): <b>0.200</b>" in plot
    assert rounds.count(">best<") == 1 and reason[1:] in rounds and reason not in head, "the reason is said once"
    badge = rounds.index(">best<")
    assert rounds.index("<b>step 3</b>") < badge < rounds.index("<b>before</b>")
