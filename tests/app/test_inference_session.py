"""The inference session: previews, unchanged results, cancellation."""

import threading

import numpy as np
import pytest
import torch
from conftest import stir, tiny_pipe

import hra_diffusion as hra
from app.inference_session import Cancelled, InferenceSession, Preview, Result
from hra_diffusion.adapters import attachment
from hra_diffusion.errors import UserError


@pytest.fixture
def session(base_folder):
    return InferenceSession(str(base_folder), "cpu")


def save_adapter(path, name, seed=0):
    pipe = tiny_pipe()
    hra.attach(pipe.unet, "lora", {"rank": 2}, name=name)
    stir(attachment.adapter_parameters(pipe.unet, name).values(), seed)
    hra.save(pipe, path, name)
    return path


def generation(session, count=2, steps=4):
    return lambda on_step: hra.generate(session.pipe, "a dog", {}, 3, count, hra.Settings(steps=steps), on_step=on_step)


def test_previews_precede_the_images_and_do_not_change_them(session):
    updates = list(session.watch(generation(session), 2, threading.Event()))
    previews, result = updates[:-1], updates[-1]
    assert previews and all(isinstance(one, Preview) for one in previews) and isinstance(result, Result)
    assert [one.progress for one in previews] == sorted(one.progress for one in previews) and previews[-1].progress == 1
    plain = hra.generate(session.pipe, "a dog", {}, 3, 2, hra.Settings(steps=4))
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(result.value, plain, strict=True))


def test_cancelling_takes_one_step_and_the_session_stays_usable(session):
    cancel = threading.Event()
    updates = session.watch(generation(session, steps=500), 2, cancel)
    next(updates)
    cancel.set()
    with pytest.raises(Cancelled):
        list(updates)
    assert isinstance(list(session.watch(generation(session), 2, threading.Event()))[-1], Result)


def test_a_generation_cancelled_while_waiting_does_not_start(session):
    started, cancel = [], threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        list(session.watch(started.append, 1, cancel))
    assert not started


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_is_a_user_error(session, kind):
    def generate(on_step):
        raise kind

    with pytest.raises(UserError, match="out of memory; generate fewer or smaller"):
        list(session.watch(generate, 1, threading.Event()))


def test_closing_the_iterator_ends_the_generation(session):
    updates = session.watch(generation(session, steps=500), 2, threading.Event())
    next(updates)
    updates.close()
    assert session.lock.acquire(timeout=5), "the device is free again"
    session.lock.release()


def test_exceptions_are_raised_in_watch(session):
    with pytest.raises(ValueError, match="no adapter named 'x'"):
        list(session.watch(lambda on_step: hra.generate(session.pipe, "a", {"x": 1.0}), 1, threading.Event()))


def test_adapters_stay_loaded_and_a_changed_file_is_reloaded(session, tmp_path):
    first = save_adapter(tmp_path / "a.safetensors", "Rex", seed=1)
    other = save_adapter(tmp_path / "b.safetensors", "Rex", seed=2)
    infos = session.load_adapters([first, other])
    assert [info.name for info in infos] == ["Rex", "Rex 2"], "unique names"
    assert session.load_adapters([first])[0].name == "Rex" and len(hra.loaded(session.pipe)) == 2
    first.write_bytes(other.read_bytes())
    assert session.load_adapters([first])[0].name == "Rex" and len(hra.loaded(session.pipe)) == 2, (
        "replaces the old one"
    )


def test_another_base_model_starts_without_adapters(session, base_folder, tmp_path):
    session.load_adapters([save_adapter(tmp_path / "a.safetensors", "Rex")])
    session.change(str(base_folder) + "/", "cpu")
    assert not session.loaded and hra.loaded(session.pipe) == []
