"""Compare tab without a browser."""

import re
import shutil
import threading
import time

import gradio as gr
import pytest
from conftest import tiny_clip
from visitors import Visitor, comparison_plan, generated

from app.inference_session import InferenceSession
from app.web import (
    compare,
    compare_axes,
    compare_plan,
    compare_results,
    compare_votes,
    generate_images,
)
from app.web.context import AppContext
from app.web.drawing_queue import DrawingQueue
from app.web.served_files import is_served
from hra_diffusion.comparison import report
from hra_diffusion.comparison.storage import load_comparison
from hra_diffusion.files import next_numbered
from hra_diffusion.generation.png import read_png


def test_a_comparison_is_saved_and_voted_on(context, tmp_path):
    done = list(compare_plan.run_comparison(context, comparison_plan(context), threading.Event()))[-1]
    assert [column.label for column in done.variants] == ["base", "Rex"] and len(done.photos) == 3
    compare_results.save(done, tmp_path / "compare" / "0001")
    folder = compare_results.latest(tmp_path)
    again = load_comparison(folder)
    assert len(again.photos) == 3 and compare_results.show_saved(folder, again).count("<img") == 4 + 2
    question, _ = compare_votes.show_ballot(folder, again)
    assert "Rex" not in re.sub(r"sks|dog", "", question) and "base" not in question.replace("base64", ""), "blind"
    cells = [int(cell) for cell in re.findall(r'data-cell="(\d+)"', question)]
    compare_votes.record_vote(folder, again, 0, "vote", cells[0])
    with pytest.raises(ValueError, match="has been answered"):
        compare_votes.record_vote(folder, again, 0, "vote", 99)
    compare_votes.record_vote(folder, again, 0, "vote", cells[1])
    compare_votes.record_vote(folder, again, 1, "skip", None)
    after, standings = compare_votes.show_ballot(folder, again)
    assert "1 vote so far" in standings and 'data-at="2"' in after, "also after a reload: no question comes twice"
    assert f'data-of="{folder.name}"' in after, "a vote names its comparison: another tab may have made a newer one"
    assert "Blind votes" in (folder / "report.html").read_text()
    assert {"grid.png", "report.html", "pictures.zip", "results.json"} <= {path.name for path in folder.iterdir()}


def test_the_photos_are_shown_beside_the_previews(context):
    """Even without the original photos: the run keeps small copies."""
    shutil.rmtree(context.output / "photos")
    with gr.Blocks():
        events = compare.Events(context, compare.build(context), DrawingQueue())
    values = [["Rex/Rex.safetensors"], True, "a {subject}", 1, 2, 1.0, 2, False]
    shown = [update[1] for update in events.run(Visitor("a"), *values)][1:]  # the first says that it waits
    assert len(shown) > 2
    for grid in shown:
        assert grid.count('alt="photo"') == 2 and "<th>photos</th>" in grid


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapters": []}, "at least one adapter"),
        ({"prompts": " "}, "one prompt"),
        ({"prompts": "x\n" * 50, "seeds": 6}, "at most 120"),
    ],
)
def test_an_incomplete_or_too_large_comparison_is_refused(context, changes, said):
    with pytest.raises(ValueError, match=said):
        comparison_plan(context, **changes)


def test_similarity_is_plotted_against_cost(output, base_folder, tmp_path):
    clip = str(tiny_clip(tmp_path / "clip"))
    context = AppContext(output, InferenceSession(str(base_folder), "cpu", clip=clip), [str(base_folder)], local=True)
    plan = comparison_plan(context, drift=True)
    updates = list(compare_plan.run_comparison(context, plan, threading.Event()))
    assert max(preview.progress for preview in updates[:-1]) == pytest.approx(1), "what drift takes is counted"
    done = updates[-1]
    assert done.samples[1].score.drift is not None and done.variants[1].costs["megabytes"] > 0
    compare_results.save(done, tmp_path / "compare" / "0001")
    plots = report.plots(load_comparison(compare_results.latest(tmp_path)))
    assert plots.count("<svg") == 1 and "similarity to the prompt" in plots, "against costs it takes two adapters"
    assert "drift" in report.means(done)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a sks dog in the snow", "a {subject} in the snow"),
        ("a photo of a SKS Dog", "a photo of a {subject}"),
        ("a dog in the snow", "a {subject} in the snow"),
        ("a {subject} beside a dog", "a {subject} beside a dog"),
        ("in the snow", "{subject}, in the snow"),
    ],
)
def test_a_prompt_with_one_adapters_subject_is_adapted_to_each(context, prompt, asked):
    """An image sent from the Generate tab brings its prompt with the trigger."""
    assert comparison_plan(context, prompts=prompt).prompts == (asked,)


def test_a_checkpoint_is_a_variant(context):
    plan = comparison_plan(context, adapters=["Rex/Rex.safetensors", "Rex/checkpoints/000003/adapter.safetensors"])
    assert plan.labels == ["base", "Rex", "Rex step 3"]


def test_words_beyond_one_text_encoder_window_are_noted(context, tmp_path):
    prompt = "a red dog and a blue cat in the deep snow"  # a token per letter, 22 of them at once
    images = generated(context, adapters=[], prompt=prompt)
    generate_images.save_images(images, context.visitor_folder(Visitor("a")) / "pictures")
    assert "“the deep snow”" in generate_images.show_images(context, Visitor("a"))
    plan = comparison_plan(context, prompts=prompt, seeds=1)
    compare_results.save(list(compare_plan.run_comparison(context, plan, threading.Event()))[-1], tmp_path)
    again = load_comparison(tmp_path)
    assert "deep snow”" in compare_results.show_saved(tmp_path, again) and "deep snow”" in report.render(again)


@pytest.fixture
def events(context):
    with gr.Blocks():
        return compare.Events(context, compare.build(context), DrawingQueue())


def compared(context, visitor, **changes):
    """Save a comparison of a visitor and return its folder."""
    plan = comparison_plan(context, seeds=1, **changes)
    done = list(compare_plan.run_comparison(context, plan, threading.Event()))[-1]
    folder = next_numbered(context.visitor_folder(visitor) / "compare")
    compare_results.save(done, folder)
    return folder


def click(**data):
    return gr.EventData(None, data)


def test_earlier_comparisons_are_listed_by_run_and_date_opened_and_deleted(context, events):
    ann = Visitor("ann")
    first = compared(context, ann, prompts="an early {subject}")
    second = compared(context, ann, adapters=["Rex/checkpoints/000003/adapter.safetensors"], prompts="a late {subject}")
    listed, choices = events.list_history(ann, "")
    assert listed.index("a late") < listed.index("an early") and time.strftime("%b %Y") in listed
    assert [name for name, _ in choices["choices"]] == ["all", "Rex", "Rex step 3"]
    assert "an early" in events.filter_history("Rex", ann) and "a late" not in events.filter_history("Rex", ann)
    *shown, opened, _ = events.open_or_delete(click(do="open", file=first.name), "", "", ann)
    assert opened == first.name and "an early" in shown[0]
    assert events.current(ann, opened)[0] == first and events.current(ann)[0] == second
    question = events.vote(opened, click(do="skip", at="0", of=first.name), ann)[0]
    assert 'data-at="1"' in question, "votes belong to the comparison that is shown"
    *shown, opened, listed = events.open_or_delete(click(do="delete", file=first.name), opened, "", ann)
    assert not first.exists() and opened == "" and "a late" in shown[0] and "an early" not in listed
    assert next_numbered(second.parent).name == "0003", "a new one is the latest, also after a deletion"


def test_comparisons_of_others_are_neither_opened_nor_deleted(context, events):
    ann, bob = Visitor("ann"), Visitor("bob")
    folder = compared(context, ann)
    for action in ("open", "delete"):
        for name in (folder.name, "../../x", ""):
            with pytest.raises(gr.Error, match="no longer exists"):
                events.open_or_delete(click(do=action, file=name), "", "", bob)
    with pytest.raises(gr.Error, match="no longer exists"):
        events.overlay(0, "base", "Rex", folder.name, bob)
    assert folder.exists() and events.list_history(bob, "")[0].count("No comparisons yet") == 1


VALUES = [["Rex/Rex.safetensors"], True, "a {subject}\nanother", 1, 2, 1.0, 2, False]
"""The Compare tab's values, from which a grid takes what it does not vary."""


def test_a_grid_is_made_shown_and_deleted(context):
    ann, axes = Visitor("ann"), compare_axes.Events(context, DrawingQueue())
    updates = list(
        axes.draw(ann, "checkpoint", "3, last, base", "prompt", "a {subject}\na red, wet {subject}", *VALUES)
    )
    shown = updates[-1][1]
    assert (
        "checkpoint × prompt" in shown and "compare_status" not in shown and any("pictures …" in u[0] for u in updates)
    )
    (file,) = (context.visitor_folder(ann) / "grids").iterdir()
    saved = read_png(file)
    assert saved["x"]["values"] == ["3", "last", "base"] and saved["y"]["values"] == [
        "a {subject}",
        "a red, wet {subject}",
    ]
    assert saved["seed"] == 1 and saved["steps"] == 2
    assert is_served(context, str(file), context.visitor_folder(ann))
    assert not is_served(context, str(file), context.visitor_folder(Visitor("bob")))
    with pytest.raises(gr.Error, match="no longer exists"):
        axes.delete(click(file=file.name), Visitor("bob"))
    assert "<figure" not in axes.delete(click(file=file.name), ann) and not file.exists()


def test_a_checkpoint_of_a_grid_may_be_another_adapter_that_the_visitor_sees(context):
    plan, files = compare_axes.make_plan(context, ["checkpoint", "Rex step 3", "6"], [], VALUES)
    assert [path.parent.name for path in files.values()] == ["000003", "000006"]
    assert [settings.steps for settings in plan.cell_settings] == [2, 2]
    with pytest.raises(ValueError, match="there is no adapter 'Max'"):
        compare_axes.make_plan(context, ["checkpoint", "Max"], [], VALUES)


@pytest.mark.parametrize(
    ("x", "x_values", "said"),
    [
        ("colour", "red", "there is no axis"),
        ("steps", "ten", "each value is a whole number from 1 to 1000"),
        ("steps", "", "has no values"),
        ("checkpoint", "7", "no checkpoint of step 7; it has those of the steps 3, 6"),
        ("seed", ",".join(map(str, range(121))), "at most 120"),
    ],
)
def test_wrong_axes_are_refused(context, x, x_values, said):
    axes = compare_axes.Events(context, DrawingQueue())
    with pytest.raises(gr.Error, match=said):
        list(axes.draw(Visitor(), x, x_values, "", "", *VALUES))


def test_a_grid_counts_as_its_pictures(context, monkeypatch):
    counted = []
    monkeypatch.setattr(compare_axes.quotas, "count_images", lambda *given: counted.append(given[-1]))
    list(compare_axes.Events(context, DrawingQueue()).draw(Visitor(), "seed", "1,2,3", "steps", "1\n2", *VALUES))
    assert counted == [6]
