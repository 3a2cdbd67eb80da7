"""A base held for drawing: previews on the way, the same pictures at the end, and a stop that stops."""

import threading

import numpy as np
import pytest
import torch
from conftest import stir, tiny_pipe

import hra_diffusion as hra
from app.inference_session import Cancelled, InferenceSession, Preview, Result
from hra_diffusion.adapters import attachment
from hra_diffusion.errors import UserError
from hra_diffusion.generation.subjects import with_subject


@pytest.fixture
def studio(base_folder):
    return InferenceSession(str(base_folder), "cpu")


def save_adapter(path, name, seed=0):
    pipe = tiny_pipe()
    hra.attach(pipe.unet, "lora", {"rank": 2}, name=name)
    stir(attachment.adapter_parameters(pipe.unet, name).values(), seed)
    hra.save(pipe, path, name)
    return path


def drawing(studio, count=2, steps=4):
    return lambda on_step: hra.generate(studio.pipe, "a dog", {}, 3, count, hra.Settings(steps=steps), on_step=on_step)


def test_previews_come_before_the_pictures_and_change_nothing(studio):
    news = list(studio.watch(drawing(studio), 2, threading.Event()))
    previews, result = news[:-1], news[-1]
    assert previews and all(isinstance(one, Preview) for one in previews) and isinstance(result, Result)
    assert [one.done for one in previews] == sorted(one.done for one in previews) and previews[-1].done == 1
    plain = hra.generate(studio.pipe, "a dog", {}, 3, 2, hra.Settings(steps=4))
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(result.value, plain, strict=True))


def test_a_stop_ends_it_within_a_step_and_the_studio_goes_on(studio):
    cancel = threading.Event()
    news = studio.watch(drawing(studio, steps=500), 2, cancel)
    next(news)
    cancel.set()
    with pytest.raises(Cancelled):
        list(news)
    assert isinstance(list(studio.watch(drawing(studio), 2, threading.Event()))[-1], Result)


def test_what_is_stopped_while_it_waits_is_not_begun(studio):
    begun, cancel = [], threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        list(studio.watch(begun.append, 1, cancel))
    assert not begun


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_too_little_memory_is_said_in_words(studio, kind):
    def draw(on_step):
        raise kind

    with pytest.raises(UserError, match="out of memory; draw fewer or smaller"):
        list(studio.watch(draw, 1, threading.Event()))


def test_leaving_early_ends_the_drawing(studio):
    news = studio.watch(drawing(studio, steps=500), 2, threading.Event())
    next(news)
    news.close()
    assert studio.lock.acquire(timeout=5), "the device is free again"
    studio.lock.release()


def test_errors_arrive_where_the_pictures_are_awaited(studio):
    with pytest.raises(ValueError, match="no adapter named 'x'"):
        list(studio.watch(lambda on_step: hra.generate(studio.pipe, "a", {"x": 1.0}), 1, threading.Event()))


def test_adapters_are_kept_and_a_changed_file_is_loaded_anew(studio, tmp_path):
    first = save_adapter(tmp_path / "a.safetensors", "Rex", seed=1)
    other = save_adapter(tmp_path / "b.safetensors", "Rex", seed=2)
    infos = studio.load_adapters([first, other])
    assert [info.name for info in infos] == ["Rex", "Rex 2"], "two of one name are told apart"
    assert studio.load_adapters([first])[0].name == "Rex" and len(hra.loaded(studio.pipe)) == 2
    first.write_bytes(other.read_bytes())
    assert studio.load_adapters([first])[0].name == "Rex" and len(hra.loaded(studio.pipe)) == 2, (
        "in the old one's place"
    )


def test_another_base_starts_empty(studio, base_folder, tmp_path):
    studio.load_adapters([save_adapter(tmp_path / "a.safetensors", "Rex")])
    studio.change(str(base_folder) + "/", "cpu")
    assert not studio.loaded and hra.loaded(studio.pipe) == []


@pytest.mark.parametrize(
    ("prompt", "drawn"),
    [
        ("a {subject} in the snow", "a sks dog in the snow"),
        ("a dog in the snow", "a sks dog in the snow"),
        ("a SKS dog and a dog", "a SKS dog and a dog"),
        ("in the snow", "sks dog, in the snow"),
        ("a hotdog", "sks dog, a hotdog"),
        ("", "sks dog"),
    ],
)
def test_the_subject_gets_into_the_prompt(prompt, drawn):
    assert with_subject(prompt, "sks dog", "dog") == drawn


def test_a_trigger_in_brackets_is_seen():
    assert with_subject("a [V] dog in the snow", "[V] dog", "dog") == "a [V] dog in the snow"
