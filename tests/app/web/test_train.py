"""The Train tab without a browser: form, photos, forecast, planned runs."""

import dataclasses
import json
import re

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from tiny_blip import tiny_blip
from visitors import Visitor

from app.web import form, status_bar, train_form, train_photos
from app.web.train_config import FormValues, changed_settings, given_settings, plan, preview_config, queue_runs, to_yaml
from app.web.train_forecast import forecast
from hra_diffusion.adapters import registry
from hra_diffusion.models import devices
from training import config as configs
from training.data import captioner
from training.data.dataset import load_dataset
from training.data.drafts import Draft
from training.rank_matching import count_parameters, layer_shapes
from training.runs import calibration
from training.runs.owners import Person
from training.runs.progress import rough_duration
from training.runs.queue import Queue
from training.runs.run_folder import Run


@pytest.fixture
def tab(context):
    with gr.Blocks():
        return train_form.build()


@pytest.fixture
def entries(tab):
    return tab.entries


def filled(entries, advanced=None, **changes):
    """Values of the form; advanced settings that ``advanced`` does not name are empty."""
    given = {"noun": "dog", "name": "New", "trigger": "sks", "preset": "quick", "method": "hra", "several": [],
             "mode": "Form", "text": "", "add_trigger": True} | changes  # fmt: skip
    return FormValues(**given, advanced=tuple((advanced or {}).get(entry.name, "") for entry in entries))


def flat(values):
    """Values of the form as an event receives them."""
    return [*values[:-1], *values.advanced]


def photos_of(context):
    return sorted((context.output / "photos" / "Rex").glob("*.jpg"))


# The form


def test_the_form_has_every_setting_of_every_method(entries):
    names = {entry.name for entry in entries}
    for method in registry.method_names():
        assert set(registry.get_method(method).config.model_fields) <= names
    assert set(configs.TrainConfig.model_fields) - set(form.NOT_IN_FORM) <= names
    assert all(entry.component.info for entry in entries), "each is explained"


def test_empty_fields_take_the_presets_values_and_filled_ones_override_them(context, entries):
    plain = preview_config(context, entries, filled(entries))
    assert plain.steps == configs.parse(plain.model_dump() | {"steps": None}).steps
    given = {"steps": "7", "rank": "4", "flip": "yes", "sample_prompts": "a {subject}\nits {subject}"}
    changed = preview_config(context, entries, filled(entries, given))
    assert (changed.steps, changed.options["rank"], changed.flip) == (7, 4, True)
    assert changed.sample_prompts == ("a {subject}", "its {subject}")


def test_ranks_by_pattern_are_typed_as_lines(context, entries):
    given = {"ranks": ".*attn2.*to_k: 8\n\n(?:.*to_q): 2"}
    config = preview_config(context, entries, filled(entries, given))
    assert config.ranks == {".*attn2.*to_k": 8, "(?:.*to_q)": 2}
    updates = form.value_updates(entries, config.model_dump())
    shown = {entry.name: update["value"] for entry, update in zip(entries, updates, strict=True)}
    assert shown["ranks"] == ".*attn2.*to_k: 8\n(?:.*to_q): 2"
    with pytest.raises(ValueError, match=r"ranks.*integer"):
        preview_config(context, entries, filled(entries, {"ranks": ".*to_q"}))


def test_a_reload_restores_every_field(context, tab):
    given = {"steps": "7", "flip": "no"}
    typed = flat(filled(tab.entries, given, mode="YAML", text="steps: 9", several=["lora"]))
    train_form.FormEvents(context, tab).store(Visitor("a"), *typed)
    events = train_form.FormEvents(context, tab)
    assert events.restore(Visitor("a")) == typed
    assert events.restore(Visitor("b")) == [gr.skip()] * len(tab.inputs)


def test_a_draft_of_an_earlier_version_is_restored(context, tab):
    kept = {"noun": "cat", "name": "Tom", "trigger": "sks", "preset": "best", "method": "lora", "several": ["hra"],
            "mode": "YAML", "text": "steps: 9", "add_trigger": False, "rank": "4"}  # fmt: skip
    draft = context.draft(Visitor("a"))
    draft.folder.mkdir(parents=True)
    (draft.folder / "draft.json").write_text(json.dumps({"photos": [], "values": kept}))
    restored = dict(zip(tab.names, train_form.FormEvents(context, tab).restore(Visitor("a")), strict=True))
    assert {name: restored[name] for name in kept} == kept


def test_defaults_are_those_of_the_base_shown_even_before_it_is_in_use(context, tab):
    def shown(base):
        return train_form.FormEvents(context, tab).show_defaults(base, Visitor("a"), *flat(filled(tab.entries)))

    toybox, here = shown("toybox"), shown(context.session.base)
    context.session.change("toybox", "cpu")
    assert shown("toybox") == toybox != here


def test_defaults_depend_on_the_rank_and_the_optimizer(context, tab):
    names = [entry.name for entry in tab.entries]

    def shown(**typed):
        values = flat(filled(tab.entries, typed, method="hra"))
        updates = train_form.FormEvents(context, tab).show_defaults(context.session.base, Visitor("a"), *values)[1:]
        return {name: update.get("placeholder") for name, update in zip(names, updates, strict=True)}

    usual = shown()
    rank, rate = int(usual["rank"]), float(usual["learning_rate"])
    high = shown(rank=str(4 * rank), optimizer="lion8bit")
    assert float(high["learning_rate"]) == pytest.approx(0.2 * rate / 4) and high["rank"] == usual["rank"]
    assert shown(rank="three") == usual == shown(learning_rate="0.5")
    assert shown(rank=str(4 * rank), optimizer="lion8bit", steps="many") == high, "whatever else is wrong"


def test_options_of_other_methods_are_left_out(context, entries):
    assert "alpha" not in preview_config(context, entries, filled(entries, {"alpha": "3"}, method="hra")).options
    assert preview_config(context, entries, filled(entries, {"alpha": "3"}, method="lora")).options["alpha"] == 3


def test_yaml_and_form_give_the_same_configuration(context, entries):
    config = preview_config(context, entries, filled(entries, {"steps": "7"}))
    assert preview_config(context, entries, filled(entries, mode="YAML", text=to_yaml(config))) == config
    for bad, message in (("steps: [", "can't be read"), ("just words", "no settings"), ("stepz: 3", "stepz")):
        with pytest.raises(ValueError, match=message):
            preview_config(context, entries, filled(entries, mode="YAML", text=bad))


def test_opening_the_yaml_does_not_freeze_the_presets_values(context, tab):
    """Settings edited there reach the form; the others stay the preset's, so that another preset can be chosen."""
    events, before = train_form.FormEvents(context, tab), filled(tab.entries, {"steps": "7"}, method="lora")

    def back_to_form(text):
        _, _, preset, method, *fields = events.switch_mode(
            Visitor(), "Form", *flat(before._replace(mode="YAML", text=text))
        )
        updates = zip(tab.entries, fields, strict=True)
        return preset, method, {entry.name: update["value"] for entry, update in updates if update["value"]}

    shown = events.switch_mode(Visitor(), "YAML", *flat(before))[1]["value"]
    edited = shown.replace("method: lora", "method: moslora").replace("preset: quick", "preset: best")
    edited = re.sub(r"(?m)^  (init|rank_stabilized): .*\n", "", edited)  # options of LoRA alone
    preset, method, kept = back_to_form(edited.replace("learning_rate: 0.0001", "learning_rate: 0.01"))
    assert (preset, method) == ("best", "moslora") and (kept["steps"], kept["learning_rate"]) == ("7", "0.01")
    assert "batch_size" not in kept
    assert back_to_form(shown) == ("quick", "lora", {"steps": "7"})


def test_the_captions_used_for_training_are_shown(context, entries):
    draft = context.draft(Visitor("ann"))

    def shown(values):
        return train_form.show_captions(context, entries, draft.read().photos, values)

    assert shown(filled(entries))[0] == "", "no photos yet"
    draft.add(photos_of(context))
    assert not shown(filled(entries))[1]["visible"], "nothing to choose yet"
    draft.change("1.jpg", caption="a dog <sitting>")
    text, checkbox = shown(filled(entries, trigger="ohwx"))
    assert "0.jpg, 2.jpg: &#34;a photo of a ohwx dog&#34;" in text
    assert "1.jpg: &#34;ohwx dog, a dog &lt;sitting&gt;&#34;" in text and "added to 1 of 3 captions" in text
    assert checkbox["visible"]
    text, checkbox = shown(filled(entries, {"caption": "a {subject}!"}, add_trigger=False))
    assert checkbox["visible"], "it can be switched on again"
    assert "&#34;a sks dog!&#34;" in text and "1.jpg: &#34;a dog &lt;sitting&gt;&#34;" in text
    assert not preview_config(context, entries, filled(entries, add_trigger=False)).add_trigger
    assert shown(filled(entries, noun=""))[0] == ""


def test_captions_are_written_for_the_photos_without_one(context, tab, tmp_path, monkeypatch):
    ann, events = Visitor("ann"), train_form.FormEvents(context, tab)
    with pytest.raises(gr.Error, match="No photos yet"):
        events.describe("", "dog", ann)
    draft = context.draft(ann)
    draft.add(photos_of(context))
    draft.change("1.jpg", caption="mine")
    with pytest.raises(
        gr.Error, match=r"is not on this machine. Download it once \(1 GB\) with: hra-diffusion caption"
    ):
        events.describe("", "dog", ann)
    monkeypatch.setattr(captioner, "DEFAULT", str(tiny_blip(tmp_path)))
    shown = events.describe("0.jpg", "dog", ann)
    captions = {photo.file: photo.caption for photo in draft.read().photos}
    assert captions["1.jpg"] == "mine" and captions["0.jpg"] == shown and "{subject}" in shown and captions["2.jpg"]
    with pytest.raises(gr.Error, match="every photo has a caption already"):
        events.describe("", "dog", ann)


# Planned runs


def test_several_methods_from_yaml_keep_their_own_defaults(context, entries):
    text = to_yaml(preview_config(context, entries, filled(entries, method="shoft"))).replace(
        "flip: false", "flip: true"
    )
    lora, shoft = plan(context, entries, filled(entries, mode="YAML", text=text, several=["lora", "shoft"]))
    alone = preview_config(context, entries, filled(entries, method="lora"))
    assert (lora.learning_rate, lora.weight_decay) == (alone.learning_rate, alone.weight_decay)
    assert shoft.learning_rate != lora.learning_rate and lora.flip and shoft.flip
    text = "method: lora\noptions: {rank: 4, alpha: 8}"
    lora, hra = plan(context, entries, filled(entries, mode="YAML", text=text, several=["lora", "hra"]))
    assert lora.options["alpha"] == 8 and "alpha" not in hra.options


def test_several_methods_are_one_run_each_at_a_matched_budget(context, entries):
    runs = plan(context, entries, filled(entries, {"rank": "4"}, method="lora", several=["lora", "hra"]))
    assert [config.method for config in runs] == ["lora", "hra"] and runs[0].options["rank"] == 4
    shapes = layer_shapes(context.session.pipe, runs[0])
    sizes = [count_parameters(config.method, config.options, shapes) for config in runs]
    assert max(sizes) / min(sizes) < 1.3 and runs[1].options["rank"] > 4


def test_the_default_learning_rate_follows_the_matched_rank(context, entries):
    alone = preview_config(context, entries, filled(entries, method="hra"))
    rank = 2 * alone.options["rank"]
    _, hra = plan(context, entries, filled(entries, {"rank": str(rank)}, method="lora", several=["lora", "hra"]))
    ratio = hra.options["rank"] / alone.options["rank"]
    assert ratio > 2 and hra.learning_rate == pytest.approx(alone.learning_rate / ratio)
    given = {"rank": str(rank), "learning_rate": "0.01"}
    _, hra = plan(context, entries, filled(entries, given, method="lora", several=["lora", "hra"]))
    assert hra.learning_rate == 0.01


def test_a_learning_rate_of_the_default_for_the_rank_is_no_change(context, entries):
    values = filled(entries, {"rank": "64"}, method="hra")
    config = preview_config(context, entries, values)
    assert changed_settings(context, entries, values, config)["options"] == {"rank": 64}
    assert "learning_rate" not in changed_settings(context, entries, values, config)


def test_yaml_cannot_read_other_peoples_files(context, entries):
    values = filled(entries, mode="YAML", text="photos: [/etc]\nbase: /etc\nsteps: 3")
    config = preview_config(context, entries, values)
    assert [str(photo) for photo in config.photos] == ["."] and config.base.endswith("tiny-sd") and config.steps == 3


def test_yaml_of_several_subjects_is_refused(context, entries):
    text = "concepts:\n- {photos: [a], class_noun: dog, trigger: sks}\n- {photos: [b], class_noun: cat, trigger: qwe}"
    with pytest.raises(ValueError, match="the page trains one subject"):
        preview_config(context, entries, filled(entries, mode="YAML", text=text))
    assert preview_config(context, entries, filled(entries, mode="YAML", text="concepts: []\nsteps: 3")).steps == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"noun": ""}, "Say what it is"), ({"name": "../x"}, "the name"), ({"name": "Rex"}, "'Rex' exists already")],
)
def test_an_incomplete_form_is_refused_before_anything_is_written(context, entries, tmp_path, changes, message):
    draft = Draft(tmp_path / "draft")
    with pytest.raises(ValueError, match="No photos yet"):
        queue_runs(context, entries, draft, context.session.base, filled(entries))
    draft.add(photos_of(context))
    before = sorted(context.output.rglob("*"))
    with pytest.raises(ValueError, match=message):
        queue_runs(context, entries, draft, context.session.base, filled(entries, **changes))
    assert sorted(context.output.rglob("*")) == before


def test_the_operator_alone_decides_where_runs_train(context, entries, tmp_path, monkeypatch):
    monkeypatch.setattr(Queue, "start", lambda self: None)
    draft, typed = Draft(tmp_path / "draft"), "jobs: ray://elsewhere:1\nstorage: s3://elsewhere/x"
    draft.add(photos_of(context))
    queue_runs(context, entries, draft, context.session.base, filled(entries, mode="YAML", text=typed, name="A"))
    assert (Run(context.output / "A").config.jobs, Run(context.output / "A").state.device) == ("local", "cpu")
    there = dataclasses.replace(context, cluster={"jobs": "ray", "storage": "s3://bucket/runs", "device": None})
    queue_runs(there, entries, draft, context.session.base, filled(entries, mode="YAML", text=typed, name="B"))
    config = Run(context.output / "B").config
    assert (config.jobs, config.storage, config.device) == ("ray", "s3://bucket/runs", None)
    assert Run(context.output / "B").state.device == "ray"


def test_a_base_changed_by_another_visitor_is_shown_before_it_is_trained_on(context, entries, tmp_path):
    draft, before = Draft(tmp_path / "draft"), context.session.base
    draft.add(photos_of(context))
    seen = status_bar.refresh(context, None)[-1]
    assert status_bar.refresh(context, seen) == (gr.skip(),) * 5
    context.session.change("elsewhere/other-sd", "cpu")
    with pytest.raises(ValueError, match=r"in use is other-sd, not tiny-sd"):
        queue_runs(context, entries, draft, before, filled(entries))
    assert not (context.output / "New").exists()
    _, _, base, device, seen = status_bar.refresh(context, seen)
    assert device == gr.skip() and base["value"] == "elsewhere/other-sd"
    Run(context.output / "Rex").write_state("running", 3, 6)
    line, _, *menus, _ = status_bar.refresh(context, seen)
    assert "interrupted" in line and menus == [gr.skip()] * 2, "an open menu is left alone while a run goes on"


def test_runs_use_the_device_chosen_on_the_page(context, entries, monkeypatch):
    monkeypatch.setattr(devices, "available", lambda: ["cuda", "cpu"])
    *_, (_, _, shown) = status_bar.refresh(context, None)
    assert shown == "cpu", "as on the command line"
    seen = status_bar.refresh(context, None)[-1]
    context.session.change(context.session.base, "cuda")
    assert status_bar.refresh(context, seen)[3]["value"] == "cuda"
    assert given_settings(context, entries, filled(entries))["device"] == "cuda"
    assert not context.session.loaded


# The forecast


def test_time_and_memory_are_measured_never_guessed(context, entries):
    def shown():
        return forecast(context, entries, 5, filled(entries), measure=False)

    assert shown()[1] == '<p class="soft">Time and memory on this machine are measured once there are photos.</p>'
    (config,) = plan(context, entries, filled(entries))
    file = context.output / ".queue" / "calibrations" / f"{calibration.cost_key(config)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"load": 60, "step": 1.0, "memory": 3 * 2**30}))
    presets, text = shown()
    time = rough_duration(60 + config.steps)
    assert f"About <b>{time}</b> and <b>3.0 GB</b>" in text
    assert (f"Quick · {time}", "quick") in presets["choices"] and "before it" not in text
    context.queue.add(config.model_copy(update={"name": "first"}))
    assert f"It starts after one run before it, in about {time}." in shown()[1]
    context.queue.cancel("first")
    file.write_text(json.dumps({"error": "it needs 40 GB"}))
    assert "run here: it needs 40 GB" in shown()[1]


# Photos


def test_photos_show_their_warnings_and_their_crop(context, tmp_path):
    draft, photos = Draft(tmp_path / "draft"), photos_of(context)
    draft.add([photos[0], photos[1], photos[0]])
    thumbnails, warnings = train_photos.show_photos(*draft.photos(64), "1.jpg")
    assert thumbnails.count("<img") == 3 and "duplicate" in thumbnails and "same file as" in warnings
    assert re.search(r'aria-label="Photo 3, [^"]*duplicate[^"]*: crop, caption and mask"', thumbnails), (
        "also when read out"
    )
    assert thumbnails.count('class="thumb on"') == 1
    assert str(tmp_path) not in thumbnails + warnings
    assert "These 3 photos cover: " in thumbnails
    copy = draft.read().photos[2].file
    crop = train_photos.show_crop(draft.upright(copy), draft.photo(copy, 64), draft.photos(64)[1])
    assert "data:image" in crop and "same file as" in crop, "beside the photo, too"


def test_what_is_wrong_with_all_photos_is_shown_on_each(tmp_path):
    draft = Draft(tmp_path / "draft")
    for number in range(3):
        image = Image.new("RGB", (256, 256), (200, 190, 180))
        image.paste(Image.radial_gradient("L").convert("RGB").rotate(40 * number), (20 * number, 0))
        image.crop((0, 0, 256, 256)).resize((256, 256)).save(tmp_path / f"{number}.png")
    draft.add(sorted(tmp_path.glob("*.png")))
    kinds = {warning.kind for warning in draft.photos(64)[1]}
    thumbnails, warnings = train_photos.show_photos(*draft.photos(64))
    for kind in kinds & set(train_photos.OF_ALL):
        assert thumbnails.count(f">{train_photos.BADGES[kind]}</span>") == 3
    assert kinds & set(train_photos.OF_ALL) and warnings.count("in all") == len(kinds & set(train_photos.OF_ALL))


def test_a_photo_opens_with_its_crop_and_another_subject_closes_it(context):
    ann, events = Visitor("ann"), train_photos.PhotoEvents(context)
    context.draft(ann).add(photos_of(context))
    events.crop("1.jpg", 2, 0.25, 0.75, ann)
    selected, _, _, _, *sliders = events.select(gr.EventData(None, {"file": "1.jpg"}), ann)[:7]
    assert selected == "1.jpg" and sliders == pytest.approx([2, 0.25, 0.75], abs=0.02)
    selected, editor, thumbnails, *_ = events.use_sample("octopus", ann)
    assert selected == "" and not editor["visible"] and thumbnails.count("<img") == 5


def painted(path, size, box):
    """What the editor sends after a stroke over a box: an uploaded layer."""
    layer = Image.new("RGBA", size)
    layer.paste((255, 122, 0, 153), box)
    layer.save(path)
    return {"background": None, "layers": [{"path": str(path)}], "composite": None}


def test_a_painted_mask_is_stored_shown_and_copied_for_the_run(context, tmp_path):
    ann, events = Visitor("ann"), train_photos.PhotoEvents(context)
    draft = context.draft(ann)
    draft.add(photos_of(context))
    before = events.refresh(ann)[0]
    painting = events.select(gr.EventData(None, {"file": "1.jpg"}), ann)[8]
    assert painting["background"].size == (256, 192) and painting["layers"] == []
    after, _ = events.paint("1.jpg", painted(tmp_path / "a.png", (256, 192), (0, 0, 128, 192)), ann)
    assert after.count("<img") == before.count("<img") and after != before, "dark outside of the mask"
    assert draft.mask("1.jpg").getbbox() == (0, 0, 128, 192)
    opened = events.select(gr.EventData(None, {"file": "1.jpg"}), ann)
    (layer,) = opened[8]["layers"]
    assert opened[7]["open"] and layer.getchannel("A").getbbox() == (0, 0, 128, 192)
    layer.save(tmp_path / "same.png")
    same = {"layers": [{"path": str(tmp_path / "same.png")}]}
    assert events.paint("1.jpg", same, ann)[0] == gr.skip(), "the editor sends what it is given"
    draft.copy_photos(tmp_path / "copies")
    photos = load_dataset([tmp_path / "copies"], 64).photos
    shown = {photo.path.name: photo.mask for photo in draft.photos(64)[0]}
    assert [photo.mask is not None for photo in photos] == [False, True, False]
    assert photos[1].mask.tobytes() == shown["1.jpg"].tobytes()
    events.remove_mask("1.jpg", ann)
    assert draft.mask("1.jpg") is None and events.refresh(ann)[0] == before
    with pytest.raises(gr.Error, match=r"what was painted can.*t be read"):
        events.paint("1.jpg", painted(tmp_path / "b.png", (64, 64), (0, 0, 9, 9)), ann)
    events.paint("1.jpg", painted(tmp_path / "c.png", (256, 192), (0, 0, 128, 192)), ann)
    events.remove("1.jpg", ann)
    assert not list(draft.folder.glob("masks/*"))


def test_the_page_finds_the_subject_of_a_photo(context, tmp_path):
    pytest.importorskip("cv2")
    photo = Image.new("RGB", (256, 192), "green")
    photo.paste((200, 30, 30), (90, 60, 170, 140))
    photo.save(tmp_path / "ball.png")
    ann, events = Visitor("ann"), train_photos.PhotoEvents(context)
    context.draft(ann).add([tmp_path / "ball.png"])
    painting, *_ = events.find_mask("ball.png", ann)
    box = painting["layers"][0].getchannel("A").getbbox()
    assert np.abs(np.subtract(box, (90, 60, 170, 140))).max() <= 2


def test_masks_are_added_with_their_photos(context, tmp_path):
    ann = Visitor("ann")
    draft, photos = context.draft(ann), photos_of(context)
    mask = Image.new("L", (256, 192))
    mask.paste(255, (0, 0, 64, 192))
    for name, image in (("0", mask), ("1", mask.resize((64, 64))), ("x", mask)):
        image.save(tmp_path / f"{name}.mask.png")
    refused = draft.add([*photos, *sorted(tmp_path.glob("*.mask.png"))])
    assert [photo.file for photo in draft.read().photos] == ["0.jpg", "1.jpg", "2.jpg"]
    assert draft.mask("0.jpg").getbbox() == (0, 0, 64, 192) and draft.mask("1.jpg") is None
    assert refused[0].startswith("1.mask.png: the mask has 64×64 pixels, but the upright photo has 256×192")
    assert refused[1] == "x.mask.png: no photo has this name"


def test_thumbnails_and_crops_follow_the_crop_of_the_form(context, tmp_path):
    ann, events = Visitor("ann"), train_photos.PhotoEvents(context)
    draft = context.draft(ann)
    Image.effect_noise((300, 100), 80).convert("RGB").save(tmp_path / "wide.png")
    draft.add([tmp_path / "wide.png"])
    mode = train_photos.crop_mode(context, draft)
    assert mode == "bucket", "the default of a real base model"
    assert [photo.image.size for photo in draft.photos(128, mode)[0]] == [(192, 64)]
    events.crop("wide.png", 1.25, 1, 0.5, ann)
    assert draft.get("wide.png").box == (60, 10, 300, 90), "the aspect ratio of the photo"
    *_, zoom, across, down = events.select(gr.EventData(None, {"file": "wide.png"}), ann)[:7]
    assert (zoom, across, down) == pytest.approx((1.25, 1, 0.5), abs=0.02)
    events.set_crop("smart", ann)
    assert train_photos.crop_mode(context, draft) == "smart"
    events.crop("wide.png", 1, 0, 0, ann)
    assert draft.get("wide.png").box == (0, 0, 100, 100)
    draft.save_values(mode="YAML", text="crop: letterbox")
    assert train_photos.crop_mode(context, draft) == "letterbox"


def test_late_edits_of_a_removed_photo_change_no_other(context):
    ann, events = Visitor("ann"), train_photos.PhotoEvents(context)
    context.draft(ann).add(photos_of(context))
    events.remove("0.jpg", ann)
    events.set_caption("0.jpg", "late", ann)
    events.remove("0.jpg", ann)
    assert [(photo.file, photo.caption) for photo in context.draft(ann).read().photos] == [("1.jpg", ""), ("2.jpg", "")]
    with pytest.raises(gr.Error, match="has been removed"):
        events.crop("0.jpg", 2, 0.5, 0.5, ann)


def test_a_run_can_start_from_an_adapter_that_the_visitor_may_see(context, entries):
    config = preview_config(context, entries, filled(entries, {"init_adapter": "Rex step 3"}))
    assert config.init_adapter == (context.output / "Rex/checkpoints/000003/adapter.safetensors").resolve()
    assert config.options["rank"] == Run(context.output / "Rex").config.options["rank"], "the adapter's own"
    again = filled(entries, mode="YAML", text=to_yaml(config))
    assert preview_config(context, entries, again).init_adapter == config.init_adapter
    for name in ("../secret.safetensors", "/etc/passwd", "Max"):
        with pytest.raises(ValueError, match="there is no adapter"):
            preview_config(context, entries, filled(entries, {"init_adapter": name}))
    with pytest.raises(ValueError, match="is HRA: choose that method"):
        preview_config(context, entries, filled(entries, {"init_adapter": "Rex"}, method="lora"))


def test_only_who_may_configure_the_page_chooses_trackers(context, entries, tmp_path):
    given = filled(entries, {"report_to": "tensorboard\nwandb"})
    assert preview_config(context, entries, given).report_to == ("tensorboard", "wandb")
    guarded = dataclasses.replace(context, local=False, auth=tmp_path / "logins", person=Person("ann"))
    with pytest.raises(ValueError, match="only an admin"):
        preview_config(guarded, entries, given)
