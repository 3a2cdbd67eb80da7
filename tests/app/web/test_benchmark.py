"""Benchmarks of saved adapters on the page, without a browser."""

import dataclasses
import shutil
import threading
from types import SimpleNamespace

import gradio as gr
import pytest
from conftest import tiny_clip
from visitors import ADAPTER, Visitor

from app.inference_session import InferenceSession
from app.protocols.cells import Benchmark
from app.web import benchmark_queue, benchmark_runner, compare_benchmark, quotas
from app.web.benchmark_plan import make_plan
from app.web.benchmark_queue import BenchmarkQueue
from app.web.context import AppContext
from app.web.limits import Limits
from app.web.served_files import is_served
from hra_diffusion import pipeline
from hra_diffusion.errors import UserError
from training import config as configs
from training.runs import calibration, owners
from training.runs.calibration import Calibration
from training.runs.owners import Owner, Person
from training.runs.queue import Queue
from training.runs.run_folder import Run

ANN, BOB = Visitor("ann"), Visitor("bob")
TRAIN = Benchmark._train
"""Trains in the queue, other than in ``small_benchmarks``."""


@pytest.fixture
def scored(output, base_folder, tmp_path):
    """The state of a page that scores with a tiny CLIP model."""
    clip = str(tiny_clip(tmp_path / "clip"))
    session = InferenceSession(str(base_folder), "cpu", clip=clip, output=output)
    return AppContext(output, session, [str(base_folder)], local=True)


def click(**data):
    return gr.EventData(None, data)


def another(context, name, **changes):
    """Add a run like Rex with other settings; return the key of its adapter."""
    shutil.copytree(context.output / "Rex", context.output / name)
    (context.output / name / "Rex.safetensors").rename(context.output / name / f"{name}.safetensors")
    run = Run(context.output / name)
    configs.write(run.config.model_copy(update=changes), run.folder / "config.yaml")
    return f"{name}/{name}.safetensors"


def folder_of(context, visitor):
    return context.benchmarks.folders(context.visitor_folder(visitor))[0]


def test_the_settings_of_each_run_are_trained_on_all_photos_but_one(context):
    key = another(context, "Max", learning_rate=5e-2, trigger="qwe", report_to=("wandb",))
    plan = make_plan(context, [ADAPTER, "Rex/checkpoints/000003/adapter.safetensors", key], 3)
    assert len(plan.variants) == 2, "a checkpoint belongs to its run"
    subject = plan.load_subjects()["mine"]
    assert (len(subject.photos), len(subject.references), len(subject.prompts)) == (2, 1, 12)
    first, second = (plan.config(subject, variant, 2) for variant in plan.variants)
    rex = Run(context.output / "Rex").config
    assert (first.steps, first.options, first.seed, first.photos) == (6, rex.options, 2, subject.photos)
    assert (second.learning_rate, second.trigger, second.report_to) == (5e-2, "qwe", ())
    assert [plan.trigger(variant) for variant in plan.variants] == ["sks", "qwe"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"photos": ("elsewhere",)}, "trained on other photos"),
        ({"base": "toybox"}, "trained on toybox"),
        ({"init_adapter": "x.safetensors"}, "started from another adapter"),
    ],
)
def test_runs_that_can_not_be_compared_are_refused(context, changes, said):
    with pytest.raises(UserError, match=said):
        make_plan(context, [ADAPTER, another(context, "Max", **changes)], 2)


def test_nobody_trains_on_the_photos_of_others(context):
    owners.write(context.output / "Rex", Owner(owner="ann", shared=True))
    with pytest.raises(UserError, match="belongs to somebody else"):
        make_plan(dataclasses.replace(context, person=Person("bob")), [ADAPTER], 2)


def test_an_adapter_without_its_run_is_refused(context):
    (context.output / "Rex" / "config.yaml").unlink()
    with pytest.raises(UserError, match="not trained here"):
        make_plan(context, [ADAPTER], 2)


def test_the_time_is_shown_once_it_is_measured(context, monkeypatch):
    asked = []
    monkeypatch.setattr(calibration, "start", lambda output, config: asked.append(config))
    assert "Choose the adapters" in compare_benchmark.forecast(context, [], 2)
    shown = compare_benchmark.forecast(context, [ADAPTER], 2)
    assert "4 cells to measure: 2 runs to train, 112 pictures" in shown and "Measuring it" in shown and "2.jpg" in shown
    calibration.save(Calibration(step=10.0, samples=1.0, start=4.0), calibration.result_path(context.output, asked[0]))
    shown = compare_benchmark.forecast(context, [ADAPTER], 2)
    assert "about 5 min on this machine" in shown and len(asked) == 1  # 2 × (4 + 6 × 10 + 2) + 112 × 25 / 15 seconds


def test_a_benchmark_ends_with_a_table_and_a_report_of_its_visitor(scored, small_benchmarks):
    events = compare_benchmark.Events(scored)
    scored.session.load_adapters([scored.adapter_path(ADAPTER)])
    assert "waiting" in events.start([ADAPTER], 2, ANN)
    benchmark_runner.run_waiting(scored)
    folder, visitor = folder_of(scored, ANN), scored.visitor_folder(ANN)
    shown = compare_benchmark.show_benchmarks(scored, visitor)
    assert "4 of 4 cells" in shown and "finished" in shown and "<th>subject</th>" in shown and "Continue" not in shown
    report = str(folder / "report.html")
    assert is_served(scored, report, visitor) and not is_served(scored, report, scored.visitor_folder(BOB))
    assert pipeline.loaded(scored.session.pipe) == ["Rex"], "cells leave no adapter behind"
    assert str(scored.output) not in (folder / "report.html").read_text(), "the report may be passed on"
    assert "Rex" not in compare_benchmark.show_benchmarks(scored, scored.visitor_folder(BOB))
    for action in ("stop", "delete"):
        with pytest.raises(gr.Error, match="no longer exists"):
            events.act(click(do=action, file=folder.name), BOB)
    assert "Rex" not in events.act(click(do="delete", file=folder.name), ANN) and not folder.exists()


def test_a_stopped_benchmark_cancels_its_run_and_goes_on_where_it_was(scored, small_benchmarks, monkeypatch):
    """The run waits in the queue, whose workers do not start here."""
    copied = Benchmark._train
    monkeypatch.setattr(Benchmark, "_train", TRAIN)
    monkeypatch.setattr(Queue, "start", lambda self: None)
    events = compare_benchmark.Events(scored)
    events.start([ADAPTER], 2, ANN)
    folder = folder_of(scored, ANN)
    thread = threading.Thread(target=benchmark_runner.run_waiting, args=(scored,))
    thread.start()
    while not (waiting := scored.queue.waiting()):
        thread.join(0.05)
    shown = compare_benchmark.show_benchmarks(scored, scored.visitor_folder(ANN))
    assert "2 of 4: mine, Rex, seed 0" in shown and "1 of 4 cells" in shown and "running" in shown
    assert "stopp" in events.act(click(do="stop", file=folder.name), ANN)
    thread.join(30)
    assert scored.queue.job(waiting[0]).status == "stopped" and scored.benchmarks.state(folder).status == "stopped"
    monkeypatch.setattr(Benchmark, "_train", copied)
    assert "waiting" in events.act(click(do="resume", file=folder.name), ANN)
    benchmark_runner.run_waiting(scored)
    assert scored.benchmarks.state(folder).status == "finished"
    events.act(click(do="delete", file=folder.name), ANN)
    assert scored.queue.jobs() == [scored.queue.job("Rex")], "the unfinished run is in the bin"


@pytest.mark.parametrize("during", ["training", "drawing"])
def test_a_stop_on_another_page_ends_the_cell_in_progress(scored, small_benchmarks, monkeypatch, during):
    monkeypatch.setattr(benchmark_queue, "POLL_SECONDS", 0.01)
    begun, stopped = threading.Event(), threading.Event()
    if during == "training":
        monkeypatch.setattr(Benchmark, "_train", TRAIN)
        monkeypatch.setattr(Queue, "start", lambda self: begun.set())
    else:
        check = benchmark_runner._raise_if_set

        def slow(cancelled):
            begun.set()
            stopped.wait()
            cancelled.wait(30)
            check(cancelled)

        monkeypatch.setattr(benchmark_runner, "_raise_if_set", slow)
    compare_benchmark.Events(scored).start([ADAPTER], 2, ANN)
    folder = folder_of(scored, ANN)
    thread = threading.Thread(target=benchmark_runner.run_waiting, args=(scored,))
    thread.start()
    assert begun.wait(60)
    BenchmarkQueue().stop(folder)
    stopped.set()
    thread.join(30)
    assert not thread.is_alive() and scored.benchmarks.state(folder).status == "stopped"
    assert scored.queue.waiting() == []


def test_a_failed_cell_is_named_and_others_are_run(scored, small_benchmarks, monkeypatch):
    train = Benchmark._train

    def fail(benchmark, cell, folder):
        if cell.seed == 0:
            raise UserError("out of memory")
        train(benchmark, cell, folder)

    monkeypatch.setattr(Benchmark, "_train", fail)
    compare_benchmark.Events(scored).start([ADAPTER], 2, ANN)
    benchmark_runner.run_waiting(scored)
    shown = compare_benchmark.show_benchmarks(scored, scored.visitor_folder(ANN))
    assert "Rex, seed 0: out of memory" in shown and "3 of 4 cells" in shown and "Continue" in shown


def test_a_benchmark_waits_for_its_base_model(scored, small_benchmarks):
    compare_benchmark.Events(scored).start([ADAPTER], 2, ANN)
    scored.session.change("toybox", "cpu")
    benchmark_runner.run_waiting(scored)
    state = scored.benchmarks.state(folder_of(scored, ANN))
    assert state.status == "stopped" and "another base model" in state.notes[0] and "Continue" in state.notes[0]


def test_a_page_without_scores_says_why(context, small_benchmarks):
    compare_benchmark.Events(context).start([ADAPTER], 2, ANN)
    benchmark_runner.run_waiting(context)
    state = context.benchmarks.state(folder_of(context, ANN))
    assert state.status == "failed" and "CLIP" in state.notes[0]


def test_a_visitor_has_one_benchmark_and_its_pictures_count(scored, small_benchmarks):
    guest = dataclasses.replace(scored, local=False, limits=Limits(images_per_hour=6))
    owners.write(guest.output / "Rex", Owner(owner=f"#{guest.visitor_folder(ANN).name}"))
    events = compare_benchmark.Events(guest)
    events.start([ADAPTER], 2, ANN)
    with pytest.raises(gr.Error, match="waits or runs already"):
        events.start([ADAPTER], 2, ANN)
    guest.benchmarks.stop(folder_of(guest, ANN))
    with pytest.raises(gr.Error, match="6 pictures in an hour"):
        events.start([ADAPTER], 2, ANN)
    assert guest.benchmarks.waiting(guest.output) == []
    with pytest.raises(UserError, match="pictures"):
        quotas.count_images(guest.for_visitor(ANN), SimpleNamespace(request=ANN.request), 1)
