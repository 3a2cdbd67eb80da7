"""Library tab without a browser."""

import json
import shutil

import gradio as gr
import pytest
from conftest import stir, tiny_pipe
from safetensors import safe_open
from safetensors.torch import load_file
from visitors import Visitor

from app.web import (
    library,
    library_cards,
    library_facts,
    library_files,
)
from hra_diffusion import pipeline, trash
from hra_diffusion.adapters import adapter_file, attachment
from hra_diffusion.adapters.adapter_file import read, read_info
from training.runs import lookup
from training.runs.run_folder import Run


def test_the_library_shows_searches_renames_and_bins(context):
    assert "Rex" in library_cards.show_cards(context) and "No adapter matches" in library_cards.show_cards(
        context, "zebra"
    )
    facts = library_facts.show_facts(context, "Rex/Rex.safetensors")
    assert "tiny-sd" in facts and "3 photos, 6 steps" in facts and "sks dog" in facts
    places = library_facts.show_compatibility(read_info(context.adapter_path("Rex/Rex.safetensors")))
    assert "<dd>exactly: PEFT</dd>" in places and "by file format: AUTOMATIC1111, Forge, ComfyUI" in places
    path = lookup.rename(context.adapter_path("Rex/Rex.safetensors"), "Max")
    assert read_info(path).name == "Max" and Run(path.parent).config.name == "Max" and Run(path.parent).finished


@pytest.mark.parametrize("form", library_files.EXPORTS.values())
def test_an_adapter_is_exported_in_every_format_and_imported_again(context, form, tmp_path):
    path, text = library_files.export_file(context, context.adapter_path("Rex/Rex.safetensors"), form, tmp_path)
    assert path.is_file() and path.parent == tmp_path
    if form != library_files.OWN:
        assert any("exactly" in line for line in text) and any("sks dog" in line for line in text)
    if form in (library_files.OWN, "kohya", "diffusers"):
        before = sorted(context.output.glob("*/*.safetensors"))
        assert (
            library_files.describe_file(context, path) and sorted(context.output.glob("*/*.safetensors")) == before
        ), "described, not imported"
        kept, _ = library_files.import_file(context, path)
        assert library_cards.incompatibility(context, kept) == "" and kept.parent != path.parent
        assert context.session.load_adapters([kept])


def test_an_export_that_programs_load_incorrectly_needs_confirmation(context):
    pipe, key, visitor = tiny_pipe(), "Sho/Sho.safetensors", Visitor("a")
    attachment.attach(pipe.unet, "shoft", {"rank": 2}, name="Sho")
    stir(attachment.adapter_parameters(pipe.unet, "Sho").values())
    pipeline.save(pipe, context.output / key, "Sho", "sks", "dog")
    events, made = library.Events(context), context.visitor_folder(visitor) / "exports"
    assert [form for form in library_files.EXPORTS.values() if library_files.export_warning(context, key, form)] == [
        "kohya",
        library_files.BUNDLE,
    ]
    assert not library_files.export_warning(context, "Rex/Rex.safetensors", "kohya")
    ready, question = events.export(key, "kohya", visitor)
    assert ready["visible"] is False and not made.exists(), "nothing is made before the answer"
    assert "InvokeAI: unusable" in question and 'data-do="plain"' in question and 'data-do="make"' in question
    scaled = {}
    for answer in ("make", "plain"):
        ready, text = events.export_confirmed(gr.EventData(None, {"do": answer}), key, "kohya", visitor)
        scaled[answer] = any(name.endswith("dora_scale") for name in load_file(ready["value"]))
        assert ready["visible"] and ("DoRA" if answer == "make" else "Written: LoRA of rank 32") in text
    assert scaled == {"make": True, "plain": False}


def test_an_export_contains_the_runs_metadata_and_last_sample(context, tmp_path):
    path, _ = library_files.export_file(context, context.adapter_path("Rex/Rex.safetensors"), "kohya", tmp_path)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    assert json.loads(facts["ss_tag_frequency"]) == {"Rex": {"sks dog": 3}}
    assert facts["ss_resolution"] == "(16, 16)" and facts["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")


def test_an_import_needs_confirmation(context, tmp_path):
    events, file = (
        library.Events(context),
        shutil.copy(context.adapter_path("Rex/Rex.safetensors"), tmp_path / "given.safetensors"),
    )
    _, text, given = events.describe(str(file))
    assert (
        "Rex: HRA of “sks dog”, for tiny-sd." in text
        and 'data-do="import"' in text
        and len(list(context.output.glob("*/*.safetensors"))) == 1
    )
    said, cards, _ = events.confirm(gr.EventData(None, {"do": "import"}), "", given, Visitor())
    assert "Rex 2 is imported" in said and cards.count('data-do="open"') == 2


def test_an_adapter_of_another_base_is_marked(context, tmp_path):
    other = tiny_pipe()
    stir(other.unet.parameters(), by=1.0)
    other.save_pretrained(tmp_path / "other")
    context.session.change(str(tmp_path / "other"), "cpu")
    assert "another base" not in library_cards.show_cards(context), "not before the base is known"
    _ = context.session.pipe
    assert "another base" in library_cards.show_cards(context)
    assert "weights differ" in library_facts.show_facts(context, "Rex/Rex.safetensors")


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "Rex/config.yaml", "Rex/../../x.safetensors"])
def test_keys_from_the_page_cannot_leave_the_outputs_folder(context, key):
    with pytest.raises(ValueError, match="no longer exists"):
        context.adapter_path(key)


def test_a_broken_file_is_a_card_that_says_what_is_wrong(context):
    """An adapter file with a probe of 1e200 once closed the Library to everybody."""
    path = context.output / "Odd" / "Odd.safetensors"
    info, tensors = read(context.output / "Rex" / "Rex.safetensors")
    component, probes = next(iter(info.fingerprint.items()))
    odd = {component: dict.fromkeys(probes, 1e200)}
    adapter_file.save(path, {}, info.model_copy(update={"name": "Odd", "fingerprint": odd}), tensors)
    context.rescan()
    shown = library_cards.show_cards(context)
    assert "no weight has such a probe" in shown and ">Odd<" in shown and 'data-key="Rex/Rex.safetensors"' in shown
    assert f"{context.output}/Odd" not in shown
    assert "broken file" not in library_cards.show_cards(context, search="rex")
    first = library_cards.show_cards(context, count=1)
    assert ">Rex<" in first and ">Odd<" not in first and "Show more" in first
    assert [key for _, key in context.adapter_choices() if "Odd" in key] == []
    event = gr.EventData(None, {"do": "discard", "key": "Odd/Odd.safetensors"})
    library.Events(context).choose(event, "", None, 60, Visitor())
    assert ">Odd<" not in library_cards.show_cards(context) and not path.exists()
    assert [key.endswith("Odd") for key in trash.keys(context.output)] == [True]
