"""The page without a browser: what it shows, what its buttons do, and its API; on a tiny real base."""

import json
import re
import shutil
import threading
import time
from pathlib import Path

import gradio as gr
import pytest
from conftest import stir, tiny_clip, tiny_pipe
from gradio_client import Client
from safetensors import safe_open
from safetensors.torch import load_file

from app.inference_session import InferenceSession
from app.web import compare, generate, html, library, run_view, status_bar, theme
from app.web.blocks import build
from app.web.context import AppContext
from hra_diffusion import pipeline, trash
from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.comparison import report
from hra_diffusion.generation.png import read_png
from toybox.scenes import SCENES
from training import config as configs
from training.runs.run_folder import Run


class Visitor:
    """Who asks: a cookie, as gr.Request has it."""

    username = None

    def __init__(self, cookie):
        self.cookies, self.session_hash = {"hra_visitor": cookie}, cookie


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("front", "back"),
    [
        ("button_primary_text_color", "button_primary_background_fill"),
        ("button_primary_text_color", "button_primary_background_fill_hover"),
        ("input_placeholder_color", "input_background_fill"),
        ("body_text_color_subdued", "body_background_fill"),
    ],
)
@pytest.mark.parametrize("dark", ["", "_dark"])
def test_what_is_written_can_be_read(front, back, dark):
    """WCAG 2's contrast for text."""
    looks = theme.theme()

    def color(name):
        value = getattr(looks, name + dark, None) or getattr(looks, name)
        value = getattr(looks, value[1:]) if value.startswith("*") else value
        return {"white": "#ffffff"}.get(value, value)

    low, high = sorted(luminance(color(name)) for name in (front, back))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_bars_have_a_name_for_screen_readers():
    assert 'aria-label="Rex learning"' in html.bar(0.5, "Rex learning")


# The run


def test_a_finished_run_shows_losses_samples_and_what_comes_next(context):
    head, plot, rounds, log, *_ = run_view.look(context, "Rex", None)
    assert "Rex is ready" in head and "<svg" in plot and "polyline" in plot and "step 6 of 6" in log
    assert rounds.index("step 6") < rounds.index("step 3") < rounds.index("before"), (
        "newest first, the base's idea last"
    )
    assert rounds.count("Try this one") == 2
    seen = run_view.look(context, "Rex", None)[-1]
    assert all(
        isinstance(update, dict) and update.get("__type__") == "update"
        for update in run_view.look(context, "Rex", seen)
    )


def test_methods_taught_together_are_compared_together(context):
    for name in ("Rex-lora", "Other"):
        shutil.copytree(context.output / "Rex", context.output / name)
        (context.output / name / "Rex.safetensors").rename(context.output / name / f"{name}.safetensors")
    other = Run(context.output / "Other")
    configs.write(other.config.model_copy(update={"photos": (Path("elsewhere"),)}), other.folder / "config.yaml")
    _, chosen = run_view.Events(context).set_beside("Rex")
    assert sorted(chosen["value"]) == ["Rex-lora/Rex-lora.safetensors", "Rex/Rex.safetensors"]


def test_a_failed_run_says_why_and_what_to_change_and_never_that_it_is_done(context):
    Run(context.output / "Rex").write_state("failed", 3, 6, reason="the loss became nan at step 4")
    head, _, _, log, _, *offers, _ = run_view.look(context, "Rex", None)
    assert "It failed: the loss became nan" in head and "learning rate" in head
    assert "ready" not in head.lower() and "complete" not in (head + log).lower()
    buttons = ("stop", "sample", "resume", "again", "generate", "compare")
    assert [button for button, offer in zip(buttons, offers, strict=True) if offer["visible"]] == ["again"]


def test_a_dead_run_is_found_and_offered(context):
    Run(context.output / "Rex").write_state("running", 3, 6)
    jobs = context.queue.jobs()
    assert "broke off" in status_bar.running_line(context, jobs) and 'data-do="resume"' in status_bar.running_line(
        context, jobs
    )
    assert "Resume goes on" in run_view.look(context, "Rex", None)[0]


def test_a_run_that_came_to_nothing_is_put_away_and_brought_back(context, monkeypatch):
    with pytest.raises(ValueError, match="is finished"):
        status_bar.do(context, "delete", "Rex")
    run = Run(context.output / "Rex")
    run.adapter.unlink()
    run.write_state("failed", 3, 6, reason="the loss became nan")
    assert 'data-do="delete"' in status_bar.runs_table(context.queue.jobs())
    monkeypatch.chdir(context.output.parent)
    status_bar.do(
        AppContext(Path(context.output.name), context.session, context.bases), "delete", "Rex"
    )  # as `make app` names it
    assert context.queue.jobs() == [] and "Rex" in library.show_bin(context)
    (key,) = trash.keys(context.output)
    trash.restore(key, context.output)
    assert [(job.run.name, job.status, job.reason) for job in context.queue.jobs()] == [
        ("Rex", "failed", "the loss became nan")
    ]


def test_names_are_escaped_wherever_they_are_shown(context):
    Run(context.output / "Rex").write_state("failed", 3, 6, reason="<script>alert(1)</script>")
    head, _, _, log, *_ = run_view.look(context, "Rex", None)
    assert "<script>" not in head + log and "&lt;script&gt;" in head


# Generate


def wish(**changes):
    given = {"adapters": ["Rex/Rex.safetensors"], "prompt": "a dog in the snow", "count": 2, "seed": 5, "lock": True,
             "negative": "", "steps": 3, "guidance": None, "scheduler": "ddim", "width": None, "height": None,
             "strengths": [1.0]} | changes  # fmt: skip
    return generate.GenerationRequest(**given)


def test_pictures_come_with_previews_and_their_settings(context, tmp_path):
    settings = {"negative": "fog", "guidance": 2.0, "scheduler": "euler", "width": 32, "height": 16}
    news = list(generate.draw(context, wish(**settings), threading.Event()))
    assert len(news) > 1 and news[-1][1] == 1.0
    files = generate.keep(list(news[-1][0].values()), tmp_path)
    made = read_png(files[0])
    assert made["prompt"] == "a sks dog in the snow" and made["adapters"] == {"Rex": 1.0} and made["seed"] == 5
    said = {"negative": "negative_prompt", "guidance": "guidance_scale"}
    assert {name: made[said.get(name, name)] for name in settings} == settings
    assert generate._fill(context, made)[:4] == [["Rex/Rex.safetensors"], "a sks dog in the snow", 1, 5]
    another = generate._fill(context, generate._for_another(context, made))
    assert another[:4] == [[], "a {subject} in the snow", 1, 5], "the same noise for another adapter"


def test_words_that_are_encoded_apart_are_named_with_the_pictures(context, tmp_path):
    prompt = "a red dog and a blue cat in the deep snow"  # a token per letter, 22 of them at once
    pictures, _ = list(generate.draw(context, wish(adapters=[], prompt=prompt), threading.Event()))[-1]
    generate.keep(list(pictures.values()), context.own(Visitor("a")) / "pictures")
    assert "“the deep snow”" in generate.show_stage(context, Visitor("a"))
    plan = compared(context, prompts=prompt, seeds=1)
    compare.keep(list(compare.draw(context, plan, threading.Event()))[-1], tmp_path)
    again = compare.load_comparison(tmp_path)
    assert "deep snow”" in compare.show_kept(tmp_path, again) and "deep snow”" in report.render(again)


def test_every_adapter_keeps_its_own_strength(context):
    with gr.Blocks():
        events = generate.Events(context, generate.build(context))
    rex, early = "Rex/Rex.safetensors", "Rex/checkpoints/000003/adapter.safetensors"
    *sliders, mixed = events.sliders([early], [rex, early], 0.3, 0.8, 1.0, 1.0)
    assert mixed == [early] and [slider["value"] for slider in sliders if slider["visible"]] == [0.8]
    made = {"prompt": "a", "seed": 1, "negative_prompt": "", "steps": 2, "guidance_scale": 1.0, "scheduler": "ddim",
            "width": 16, "height": 16, "adapters": {"gone": 0.3, "Rex": 0.8}}  # fmt: skip
    filled_in = generate._fill(context, made)
    assert filled_in[0] == filled_in[-1] == [rex] and filled_in[11] == 0.8


def test_a_checkpoint_of_a_run_can_be_drawn_with_and_is_named(context, tmp_path):
    labels = dict(context.adapter_choices())
    assert list(labels) == ["Rex", "Rex step 3", "Rex step 6"]
    pictures, _ = list(generate.draw(context, wish(adapters=[labels["Rex step 3"]]), threading.Event()))[-1]
    (file, _) = generate.keep(list(pictures.values()), tmp_path)
    assert read_png(file)["adapters"] == {"Rex step 3": 1.0}


def test_a_damaged_checkpoint_is_left_out_and_the_rest_stays(context):
    (context.output / "Rex/checkpoints/000003/adapter.safetensors").write_bytes(b"half a file")
    assert [label for label, _ in context.adapter_choices()] == ["Rex", "Rex step 6"]


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "Rex/config.yaml", "Rex/../../x.safetensors"])
def test_keys_from_the_page_cannot_leave_the_outputs_folder(context, key):
    with pytest.raises(ValueError, match="not there any more"):
        context.file(key)


def test_an_empty_prompt_and_an_odd_size_are_explained(context):
    with pytest.raises(ValueError, match="Say what to draw"):
        list(generate.draw(context, wish(adapters=[], prompt=" "), threading.Event()))
    with pytest.raises(ValueError, match="multiples of"):
        list(generate.draw(context, wish(width=33), threading.Event()))


def test_a_stop_reaches_what_still_waits_for_the_device(context):
    with gr.Blocks():
        events = generate.Events(context, generate.build(context))
    ann, values = Visitor("ann"), [[], "a dog", 1, 3, True, "", 2, None, "ddim", None, None, 1, 1, 1, 1]
    pictures, _ = list(generate.draw(context, wish(count=1), threading.Event()))[-1]
    generate.keep(list(pictures.values()), context.own(ann) / "pictures")
    assert "waiting for the device" in events.ready(ann, *values), "said at once, not when its turn comes"
    with pytest.raises(gr.Error, match="under way"):
        events.ready(ann, *values)
    assert events.halt(ann).count('class="picture"') == 1
    events.ready(ann, *values)
    assert list(events.create(ann, *values))[-1][0].count('class="picture"') == 1, "its turn came: nothing was drawn"
    assert list(events.create(ann, *values))[-1][0].count('class="picture"') == 2


# Compare


def compared(context, **changes):
    given = {"adapters": ["Rex/Rex.safetensors"], "base": True, "prompts": "a {subject}", "seed": 1, "seeds": 2,
             "strength": 1.0, "steps": 2, "drift": False} | changes  # fmt: skip
    return compare.make_plan(context, list(given.values()))


def test_a_comparison_is_kept_whole_and_voted_on(context, tmp_path):
    done = list(compare.draw(context, compared(context), threading.Event()))[-1]
    assert [column.label for column in done.variants] == ["base", "Rex"] and len(done.photos) == 3
    compare.keep(done, tmp_path / "compare" / "0001")
    folder = compare.newest(tmp_path)
    again = compare.load_comparison(folder)
    assert len(again.photos) == 3 and compare.show_kept(folder, again).count("<img") == 4 + 2
    question, _ = compare.show_ballot(folder, again)
    assert "Rex" not in re.sub(r"sks|dog", "", question) and "base" not in question.replace("base64", ""), "blind"
    cells = [int(cell) for cell in re.findall(r'data-cell="(\d+)"', question)]
    compare.count_vote(folder, again, 0, "vote", cells[0])
    with pytest.raises(ValueError, match="question is over"):
        compare.count_vote(folder, again, 0, "vote", 99)
    compare.count_vote(folder, again, 0, "vote", cells[1])
    compare.count_vote(folder, again, 1, "skip", None)
    after, standings = compare.show_ballot(folder, again)
    assert "1 votes so far" in standings and 'data-at="2"' in after, "also after a reload: no question comes twice"
    assert f'data-of="{folder.name}"' in after, "a vote says what it is on: another tab may have compared anew"
    assert "Blind votes" in (folder / "report.html").read_text()
    assert {"grid.png", "report.html", "pictures.zip", "results.json"} <= {path.name for path in folder.iterdir()}


def test_the_photos_stand_beside_the_pictures_from_the_start(context):
    """Also when the photos themselves are gone: the run keeps small copies."""
    shutil.rmtree(context.output / "photos")
    with gr.Blocks():
        events = compare.Events(context, compare.build(context))
    values = [["Rex/Rex.safetensors"], True, "a {subject}", 1, 2, 1.0, 2, False]
    shown = [update[1] for update in events.run(Visitor("a"), *values)]
    assert len(shown) > 2
    for grid in shown:
        assert grid.count('alt="photo"') == 2 and "<th>photos</th>" in grid


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapters": []}, "at least one adapter"),
        ({"prompts": " "}, "one prompt"),
        ({"prompts": "x\n" * 50, "seeds": 6}, "are the most"),
    ],
)
def test_a_comparison_that_cannot_be_says_so(context, changes, said):
    with pytest.raises(ValueError, match=said):
        compared(context, **changes)


def test_likeness_is_shown_against_what_it_cost(output, base_folder, tmp_path):
    clip = str(tiny_clip(tmp_path / "clip"))
    context = AppContext(output, InferenceSession(str(base_folder), "cpu", clip=clip), [str(base_folder)])
    plan = compared(context, drift=True)
    news = list(compare.draw(context, plan, threading.Event()))
    assert max(preview.done for preview in news[:-1]) == pytest.approx(1), "what drift takes is counted"
    done = news[-1]
    assert done.samples[1].score.drift is not None and done.variants[1].costs["megabytes"] > 0
    compare.keep(done, tmp_path / "compare" / "0001")
    plots = report.plots(compare.load_comparison(compare.newest(tmp_path)))
    assert plots.count("<svg") == 1 and "likeness to the prompt" in plots, "against costs it takes two adapters"
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
def test_a_prompt_with_one_adapters_word_asks_each_for_its_own(context, prompt, asked):
    """A picture sent from Generate brings the prompt it was drawn by, the trigger in it."""
    assert compared(context, prompts=prompt).prompts == (asked,)


def test_a_checkpoint_is_a_column_of_its_own(context):
    plan = compared(context, adapters=["Rex/Rex.safetensors", "Rex/checkpoints/000003/adapter.safetensors"])
    assert plan.labels == ["base", "Rex", "Rex step 3"]


# Library


def test_the_library_shows_searches_renames_and_bins(context):
    assert "Rex" in library.show_cards(context) and "Nothing here matches" in library.show_cards(context, "zebra")
    facts = library.show_facts(context, "Rex/Rex.safetensors")
    assert "tiny-sd" in facts and "3 photos, 6 steps" in facts and "sks dog" in facts
    places = library.show_places(read_info(context.file("Rex/Rex.safetensors")))
    assert "<dd>exactly: PEFT</dd>" in places and "by file format: AUTOMATIC1111, Forge, ComfyUI" in places
    from training.runs import run_folder

    path = run_folder.rename(context.file("Rex/Rex.safetensors"), "Max")
    assert read_info(path).name == "Max" and Run(path.parent).config.name == "Max" and Run(path.parent).finished


@pytest.mark.parametrize("form", library.EXPORTS.values())
def test_an_adapter_leaves_in_every_form_and_comes_back(context, form, tmp_path):
    path, told = library.export(context, context.file("Rex/Rex.safetensors"), form, tmp_path)
    assert path.is_file() and path.parent == tmp_path
    if form != library.OWN:
        assert any("exactly" in line for line in told) and any("sks dog" in line for line in told)
    if form in (library.OWN, "kohya", "diffusers"):
        before = sorted(context.output.glob("*/*.safetensors"))
        assert library.understood(context, path) and sorted(context.output.glob("*/*.safetensors")) == before, (
            "only told"
        )
        kept, _ = library.take_in(context, path)
        assert library.misfit(context, kept) == "" and kept.parent != path.parent
        assert context.session.load_adapters([kept])


def test_the_page_asks_before_it_makes_a_file_that_programs_load_wrongly(context):
    pipe, key, visitor = tiny_pipe(), "Sho/Sho.safetensors", Visitor("a")
    attachment.attach(pipe.unet, "shoft", {"rank": 2}, name="Sho")
    stir(attachment.adapter_parameters(pipe.unet, "Sho").values())
    pipeline.save(pipe, context.output / key, "Sho", "sks", "dog")
    events, made = library.Events(context), context.own(visitor) / "exports"
    assert [form for form in library.EXPORTS.values() if library.doubts(context, key, form)] == ["kohya"]
    assert not library.doubts(context, "Rex/Rex.safetensors", "kohya")
    ready, question = events.make(key, "kohya", visitor)
    assert ready["visible"] is False and not made.exists(), "nothing is made before the answer"
    assert "InvokeAI: unusable" in question and 'data-do="plain"' in question and 'data-do="make"' in question
    scaled = {}
    for answer in ("make", "plain"):
        ready, told = events.make_after_all(gr.EventData(None, {"do": answer}), key, "kohya", visitor)
        scaled[answer] = any(name.endswith("dora_scale") for name in load_file(ready["value"]))
        assert ready["visible"] and ("DoRA" if answer == "make" else "Written: LoRA of rank 32") in told
    assert scaled == {"make": True, "plain": False}


def test_an_export_of_a_run_has_its_facts_and_its_last_sample(context, tmp_path):
    path, _ = library.export(context, context.file("Rex/Rex.safetensors"), "kohya", tmp_path)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    assert json.loads(facts["ss_tag_frequency"]) == {"Rex": {"sks dog": 3}}
    assert facts["ss_resolution"] == "(16, 16)" and facts["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")


def test_an_import_is_kept_only_when_the_visitor_says_so(context, tmp_path):
    events, file = (
        library.Events(context),
        shutil.copy(context.file("Rex/Rex.safetensors"), tmp_path / "given.safetensors"),
    )
    _, told, given = events.look_into(str(file))
    assert "Rex: HRA of “sks dog”, for tiny-sd." in told and 'data-do="keep"' in told and len(context.adapters()) == 1
    said, cards, _ = events.answer(gr.EventData(None, {"do": "keep"}), "", given)
    assert "Rex 2 is kept now" in said and cards.count('data-do="open"') == 2


def test_an_adapter_of_another_base_is_shown_as_such(context, tmp_path):
    other = tiny_pipe()
    stir(other.unet.parameters(), by=1.0)
    other.save_pretrained(tmp_path / "other")
    context.session.change(str(tmp_path / "other"), "cpu")
    assert "another base" not in library.show_cards(context), "not before the base is known"
    _ = context.session.pipe
    assert "another base" in library.show_cards(context)
    assert "weights differ" in library.show_facts(context, "Rex/Rex.safetensors")


# The whole page


def test_every_event_that_may_refuse_is_in_the_queue(context):
    """Of one outside it the browser shows no error: a button would do nothing, and nobody would know why."""
    told = [event for event in build(context).fns.values() if hasattr(event.fn, "__wrapped__")]
    assert len(told) > 20 and [event.name for event in told if event.queue is False] == []


def test_the_api_draws_and_compares(output, base_folder):
    from serving import serving

    with serving(output, base_folder) as page:
        client = Client(page.local_url, verbose=False)
        stage, seed = client.predict(["Rex/Rex.safetensors"], "a dog", 1, 3, True, "", 2, None, "ddim", None, None,
                                     1, 1, 1, 1, api_name="/generate")  # fmt: skip
        assert stage.count("<img") == 1 and seed == 3 and "sks dog" in stage
        status, grid, *_ = client.predict(
            ["Rex/Rex.safetensors"], True, "a {subject}", 0, 1, 1.0, 2, api_name="/compare"
        )
        assert "2 pictures" in status and grid.count("<img") >= 2
        names = set(client.view_api(return_format="dict", print_info=False)["named_endpoints"])
        assert names == {"/generate", "/compare"}


def test_eight_visitors_see_only_their_own(output, base_folder):
    """Each draws at the same time; none gets another's picture or prompt, and nobody waits for ever."""
    from serving import serving

    found = {}
    with serving(output, base_folder) as page:

        def visit(number):
            client = Client(page.local_url, verbose=False)
            drawn = [[], f"prompt of visitor {number}", 1, number, True, "", 2, None, "ddim", None, None, 1, 1, 1, 1]
            stage, _ = client.predict(*drawn, api_name="/generate")
            found[number] = set(re.findall(r"prompt of visitor (\d)", stage))

        threads = [threading.Thread(target=visit, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 120
        for thread in threads:
            thread.join(max(0, end - time.monotonic()))
    assert found == {number: {str(number)} for number in range(8)}


def test_photos_belong_to_who_gave_them(context):
    photos = sorted((context.output / "photos" / "Rex").glob("*.jpg"))
    context.draft(Visitor("a")).add(photos)
    assert len(context.draft(Visitor("a")).read().photos) == 3, "also after a reload or a restart: the cookie tells"
    assert context.draft(Visitor("b")).read().photos == ()
    ann = Visitor("a")
    ann.username = "ann"
    impostor = Visitor("login ann")
    assert len({context.own(who) for who in (Visitor("a"), ann, impostor)}) == 3
    assert "a" not in {path.name for path in (context.output / "visitors").iterdir()}, (
        "the folder does not tell the cookie"
    )


def test_every_idea_for_a_prompt_is_a_scene_that_toybox_knows() -> None:
    """The embedded base draws nothing sensible of any other."""
    assert set(generate.IDEAS) <= set(SCENES)
