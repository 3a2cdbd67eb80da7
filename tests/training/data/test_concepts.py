"""Several subjects in one run."""

import shutil

import pytest
import torch
from conftest import StopAfter, save_photos, weights

from app.commands.train import read_config
from hra_diffusion.adapters.adapter_file import read_info
from training import config as configs
from training.config import ConfigError
from training.data.concepts import concept_numbers, epoch, read_concepts
from training.data.photo import PhotoError
from training.loop import train
from training.runs.events import Captions, Sample
from training.runs.lookup import photos_of
from training.runs.run_folder import Run, RunError

TWO = """
concepts:
  - photos: dog
    class_noun: dog
    trigger: sks
  - photos: [teapot/0.jpg, teapot/1.jpg]
    class_noun: teapot
    trigger: qwe
    caption: a drawing of a {subject}
    repeats: 3
"""


@pytest.fixture
def folder(tmp_path):
    """A concepts file with the photos of two subjects beside it."""
    for name, count in (("dog", 2), ("teapot", 3)):
        (tmp_path / name).mkdir()
        save_photos(tmp_path / name, count)
    (tmp_path / "concepts.yaml").write_text(TWO)
    return tmp_path


def run_of(settings, folder, **changes):
    given = {"photos": None, "class_noun": None, "concepts": read_concepts(folder / "concepts.yaml")}
    return settings(**given, **changes)


def arguments(monkeypatch, *words):
    import argparse

    from app.commands import train as command

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_a_run_trains_several_subjects_and_its_adapter_knows_them(settings, folder, tmp_path):
    config, events = run_of(settings, folder, steps=2), []
    adapter = train(config, tmp_path / "out", [events.append])
    info = read_info(adapter)
    assert info.prompt_names == "sks dog, qwe teapot" and info.subject == "sks dog"
    (captions,) = (event.captions for event in events if isinstance(event, Captions))
    texts = [captions[str(folder / name)] for name in ("dog/0.jpg", "teapot/1.jpg")]
    assert texts == ["a photo of a sks dog", "a drawing of a qwe teapot"]
    assert str(folder / "teapot" / "2.jpg") not in captions, "only the photos that the file names"
    sample = next(event for event in events if isinstance(event, Sample))
    assert config.sample_texts == ["a sks dog", "a qwe teapot"] and len(sample.pictures) == 2
    classes = [path.name.rpartition("-")[0] for path in (tmp_path / "out" / ".cache" / "class-images").iterdir()]
    assert sorted(classes) == ["dog", "teapot"]
    assert len(photos_of(adapter, 64)) == 2, "references are those of the first subject"
    assert configs.read(Run(adapter.parent).folder / "config.yaml") == config


def test_prompts_without_the_subject_are_sampled_once(settings, folder):
    config = run_of(settings, folder, sample_prompts=["a {subject}", "sks dog beside qwe teapot"])
    assert config.sample_texts == ["a sks dog", "sks dog beside qwe teapot", "a qwe teapot"]


def test_repeats_decide_how_often_an_epoch_contains_a_photo(settings, folder):
    config = run_of(settings, folder)
    assert sorted(concept_numbers(config).values()) == [0, 0, 1, 1]
    assert epoch([0, 0, 1, 1], config) == [0, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("with_text", [False, True])
def test_a_resumed_run_with_shuffling_dropout_and_concepts_equals_an_uninterrupted_one(
    settings, folder, tmp_path, with_text
):
    (folder / "dog" / "0.txt").write_text("a sks dog, sitting, grass, sun, tree")
    config = run_of(
        settings, folder, steps=4, checkpoint_every=100, sample_every=0, sample_prompts=[], shuffle_captions=True,
        caption_dropout=0.3, train_text_encoder=with_text, preservation="base-output" if with_text else "class-images",
    )  # fmt: skip
    whole = weights(train(config, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(2)])
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("dog", "teapot"):
        shutil.move(folder / name, moved / name)
    shutil.copy(folder / "concepts.yaml", moved / "concepts.yaml")
    found = config.model_copy(update={"concepts": run_of(settings, moved).concepts, "photos": (moved,)})
    found = found.model_copy(update={"photos": tuple(photo for one in found.concepts for photo in one.photos)})
    assert torch.equal(weights(train(found, tmp_path / "parts", resume=True)), whole)
    stored = Run(tmp_path / "parts" / "Rex").config
    assert all(str(moved) in str(photo) for photo in stored.photos), "the run knows the new places"
    assert [len(concept.photos) for concept in stored.concepts] == [2, 2]


def test_other_concepts_are_not_resumed(settings, folder, tmp_path):
    config = run_of(settings, folder, steps=3)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "out", [StopAfter(2)])
    (folder / "concepts.yaml").write_text(TWO.replace("qwe", "xyz"))
    with pytest.raises(RunError, match="started with other values: concepts"):
        train(run_of(settings, folder, steps=3), tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("concepts: []", "must be a list with lines 'photos: …'"),
        ("concepts: [dog]", "must be a list with lines 'photos: …'"),
        ("concepts: {photos: dog}", "concepts must be a list"),
        ("subjects: []", "there is no option 'subjects'; expected a list 'concepts:'"),
        (TWO.replace("    trigger: sks\n", ""), r"concepts: 0\.trigger: Field required"),
        (TWO.replace("photos: dog", "photos: []"), "the concept 'sks' has no photos; add a line 'photos: …' to it"),
        (TWO.replace("photos: dog\n    ", ""), "the concept 'sks' has no photos"),
        (TWO.replace("photos: dog", "photos: {a: b}"), "photos of a concept must be paths"),
        (TWO.replace("repeats", "num_repeats"), r"concepts: there is no option '1\.num_repeats'"),
        (TWO.replace("qwe", "SKS"), "two concepts have the trigger 'SKS'; give each a word of its own"),
        (TWO.replace("class_noun: dog", "class_noun: ' '"), r"0\.class_noun: must be plain words"),
        (TWO.replace("photos: dog", "photos: dog\n    photos: &a x"), "anchors"),
    ],
)
def test_invalid_concepts_are_named(folder, text, message):
    (folder / "concepts.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        configs.parse({"name": "Rex", "concepts": read_concepts(folder / "concepts.yaml")})


def test_a_concept_without_photos_and_a_photo_of_two_concepts_are_refused(settings, folder, tmp_path):
    (folder / "empty").mkdir()
    (folder / "concepts.yaml").write_text(TWO.replace("photos: dog", "photos: empty"))
    with pytest.raises(PhotoError, match="empty: no photos in this folder"):
        train(run_of(settings, folder), tmp_path / "out")
    (folder / "concepts.yaml").write_text(TWO.replace("photos: dog", "photos: [dog, teapot]"))
    with pytest.raises(PhotoError, match=r"0\.jpg: is among the photos of 'sks' and of 'qwe'"):
        train(run_of(settings, folder), tmp_path / "out")


def test_the_command_line_reads_a_concepts_file(folder, monkeypatch):
    concepts = str(folder / "concepts.yaml")
    config = read_config(arguments(monkeypatch, "--name", "Both", "--concepts", concepts))
    assert [concept.subject for concept in config.subjects] == ["sks dog", "qwe teapot"]
    assert config.photos[0] == folder / "dog" and config.class_noun == "dog"
    for extra in (["--photos", str(folder)], ["--class-noun", "cat"], ["--trigger", "zzz"]):
        with pytest.raises(ConfigError, match="given beside the concepts"):
            read_config(arguments(monkeypatch, "--name", "Both", "--concepts", concepts, *extra))
    configs.write(config, folder / "config.yaml")
    assert read_config(arguments(monkeypatch, "--config", str(folder / "config.yaml"))) == config
    with pytest.raises(ConfigError, match=r"nothing\.yaml can't be read"):
        read_config(arguments(monkeypatch, "--name", "Both", "--concepts", str(folder / "nothing.yaml")))
