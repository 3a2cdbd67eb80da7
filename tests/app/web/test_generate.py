"""Generate tab without a browser."""

import threading

import gradio as gr
import pytest
from visitors import Visitor, generated, generation_request

from app.web import (
    generate,
    generate_images,
    generate_request,
    library_facts,
)
from app.web.drawing_queue import DrawingQueue
from hra_diffusion.adapters.adapter_file import AdapterInfo, read_info, rewrite_info
from hra_diffusion.generation.png import read_png
from toybox.scenes import SCENES


def test_images_follow_previews_and_contain_their_settings(context, tmp_path):
    settings = {"negative": "fog", "guidance": 2.0, "scheduler": "euler", "width": 32, "height": 16}
    updates = list(generate_request.generate_images(context, generation_request(**settings), threading.Event()))
    assert len(updates) > 1 and updates[-1][1] == 1.0
    files = generate_images.save_images(list(updates[-1][0].values()), tmp_path)
    made = read_png(files[0])
    assert made["prompt"] == "a sks dog in the snow" and made["adapters"] == {"Rex": 1.0} and made["seed"] == 5
    said = {"negative": "negative_prompt", "guidance": "guidance_scale"}
    assert {name: made[said.get(name, name)] for name in settings} == settings
    assert generate_request.values_from_settings(context, made)[:4] == [
        ["Rex/Rex.safetensors"],
        "a sks dog in the snow",
        1,
        5,
    ]
    another = generate_request.values_from_settings(context, generate_request.without_adapters(context, made))
    assert another[:4] == [[], "a {subject} in the snow", 1, 5], "the same noise for another adapter"


def test_the_subject_that_a_prompt_names_is_used_of_an_adapter_with_several(context):
    file = context.output / "Rex" / "Rex.safetensors"
    subjects = ({"trigger": "sks", "class_noun": "dog"}, {"trigger": "qwe", "class_noun": "teapot"})
    info = read_info(file).model_dump() | {"subjects": subjects}
    rewrite_info(file, AdapterInfo.model_validate(info))
    prompts = {
        "a {subject} at night": "a sks dog at night",
        "a qwe teapot at night": "a qwe teapot at night",
        "a teapot at night": "a qwe teapot at night",
        "a sks dog with a qwe teapot": "a sks dog with a qwe teapot",
        "at night": "sks dog, at night",
    }
    for prompt, resolved in prompts.items():
        assert generate_request.resolve_prompt(context, ["Rex/Rex.safetensors"], prompt) == resolved
    assert "sks dog, qwe teapot" in library_facts.show_facts(context, "Rex/Rex.safetensors")


def test_every_adapter_keeps_its_strength(context):
    with gr.Blocks():
        events = generate.Events(context, generate.build(context), DrawingQueue())
    rex, early = "Rex/Rex.safetensors", "Rex/checkpoints/000003/adapter.safetensors"
    *sliders, mixed, fusion = events.sliders(Visitor(), [early], [rex, early], 0.3, 0.8, 1.0, 1.0)
    assert mixed == [early] and [slider["value"] for slider in sliders if slider["visible"]] == [0.8]
    assert not fusion["visible"] and events.sliders(Visitor(), [rex, early], [rex], 1.0)[-1]["visible"]
    made = {"prompt": "a", "seed": 1, "negative_prompt": "", "steps": 2, "guidance_scale": 1.0, "scheduler": "ddim",
            "width": 16, "height": 16, "adapters": {"gone": 0.3, "Rex": 0.8}}  # fmt: skip
    filled_in = generate_request.values_from_settings(context, made)
    assert filled_in[0] == filled_in[-1] == [rex] and filled_in[11:13] == ["compose", 0.8]
    own = generate_request.values_from_settings(context, made | {"scheduler": "HeunDiscreteScheduler"})
    assert (filled_in[8], own[8]) == ("ddim", "dpm++"), "a pipeline's own scheduler is not in the list"


def test_images_can_be_generated_with_a_checkpoint(context, tmp_path):
    labels = dict(context.adapter_choices())
    assert list(labels) == ["Rex", "Rex step 3", "Rex step 6"]
    images = generated(context, adapters=[labels["Rex step 3"]])
    (file, _) = generate_images.save_images(images, tmp_path)
    assert read_png(file)["adapters"] == {"Rex step 3": 1.0}


def test_a_damaged_checkpoint_is_left_out(context):
    (context.output / "Rex/checkpoints/000003/adapter.safetensors").write_bytes(b"half a file")
    assert [label for label, _ in context.adapter_choices()] == ["Rex", "Rex step 6"]


def test_an_empty_prompt_and_an_invalid_size_are_refused(context):
    with pytest.raises(ValueError, match="Write a prompt first"):
        list(generate_request.generate_images(context, generation_request(adapters=[], prompt=" "), threading.Event()))
    with pytest.raises(ValueError, match="multiples of"):
        list(generate_request.generate_images(context, generation_request(width=33), threading.Event()))


def test_stop_cancels_a_request_that_waits_behind_another_visitors(context):
    with gr.Blocks():
        events = generate.Events(context, generate.build(context), DrawingQueue())
    ann, values = Visitor("ann"), [[], "a dog", 1, 3, True, "", 2, None, "ddim", None, None, "compose", 1, 1, 1, 1]
    images = generated(context, count=1)
    generate_images.save_images(images, context.visitor_folder(ann) / "pictures")
    running, waiting = events.generate(Visitor("bob"), *values), events.generate(ann, *values)
    next(running)
    assert "1 request is ahead" in next(waiting)[0], "shown at once, not when it runs"
    assert events.stop(ann).count('class="picture"') == 1
    assert list(waiting)[-1][0].count('class="picture"') == 1, "cancelled before it ran"
    running.close()  # as Gradio does when bob has left
    assert list(events.generate(ann, *values))[-1][0].count('class="picture"') == 2, "a lost request blocks nobody"


def test_every_prompt_idea_is_a_toybox_scene() -> None:
    """The embedded base model knows no other scenes."""
    assert set(generate.IDEAS) <= set(SCENES)


def click(**data):
    """The event of a clicked button."""
    return gr.EventData(None, data)


def test_older_images_are_paged_and_deleted(context):
    with gr.Blocks():
        events = generate.Events(context, generate.build(context), DrawingQueue())
    ann, folder = Visitor("ann"), context.visitor_folder(Visitor("ann")) / "pictures"
    (image,) = generated(context, count=1)
    for _ in range(30):
        generate_images.save_images([image], folder)
    first = events.images(ann)
    assert first.count('class="picture"') == 24 and "1 to 24 of 30" in first and 'data-at="24"' in first
    older = events.browse(click(do="page", at="24"), ann)
    assert older.count('class="picture"') == 6 and "25 to 30 of 30" in older and ">Newer<" in older
    assert older.count('class="day') == 1, "the day is named once"
    name = sorted(file.name for file in folder.iterdir())[0]
    after = events.browse(click(do="delete", file=name, at="24"), ann)
    assert after.count('class="picture"') == 5 and not (folder / name).exists()


def test_the_last_image_of_a_page_is_deleted(context):
    ann, folder = Visitor("ann"), context.visitor_folder(Visitor("ann")) / "pictures"
    (image,) = generated(context, count=1)
    for _ in range(25):
        generate_images.save_images([image], folder)
    generate_images.delete_image(context, ann, sorted(file.name for file in folder.iterdir())[0])
    assert generate_images.show_images(context, ann, 24).count('class="picture"') == 24


@pytest.mark.parametrize("name", ["../draft/draft.json", "00000-x.png", "/etc/passwd", ""])
def test_only_own_images_are_deleted(context, name):
    with gr.Blocks():
        events = generate.Events(context, generate.build(context), DrawingQueue())
    ann, bob = Visitor("ann"), Visitor("bob")
    (file,) = generate_images.save_images(generated(context, count=1), context.visitor_folder(ann) / "pictures")
    for tried in (name, file.name, str(file)):
        with pytest.raises(gr.Error, match="no longer exists"):
            events.browse(click(do="delete", file=tried, at="0"), bob)
    assert file.exists()
