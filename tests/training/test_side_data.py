"""Files that we wrote ourselves and that were cut short, emptied or deleted since: no run stops for them."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from conftest import StopAfter, save_photos, tiny_pipe, weights
from filelock import FileLock
from PIL import Image
from windows import PEAK, windows  # noqa: F401 (a fixture)

from hra_diffusion.comparison import votes
from hra_diffusion.comparison.votes import Vote
from hra_diffusion.generation.sampling import GenerationError
from training import config as configs
from training import scoring, worker
from training.data.class_images import load_class_images
from training.data.drafts import Draft
from training.loop import train
from training.memory import measure
from training.runs import calibration, dispatch, progress
from training.runs.calibration import Calibration
from training.runs.events import Notice
from training.runs.queue import Queue
from training.runs.run_folder import Run

DAMAGED = {"empty": b"", "cut short": b'{"status": "stop', "zeros": b"\0" * 40, "missing": None}
LEAN = {"method": "lora", "prior_loss_weight": 0, "train_text_encoder": False, "sample_prompts": []}


def damage(file, content):
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)


# Class pictures


def test_class_pictures_that_are_cut_short_empty_or_of_another_size_are_drawn_anew(tmp_path):
    pipe = tiny_pipe()
    good = [np.asarray(image, dtype=int) for image in load_class_images(pipe, "dog", 7, 16, tmp_path)]
    (folder,) = tmp_path.iterdir()
    files = sorted(folder.iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-60])
    files[1].write_bytes(b"")
    Image.new("RGB", (32, 32)).save(files[2])
    broken = bytearray(files[3].read_bytes())
    broken[-30:-20] = b"\0" * 10
    files[3].write_bytes(broken)
    Image.new("RGB", (16, 16)).save(files[4])  # of NaN
    kept = {file: file.stat().st_mtime_ns for file in files[5:]}
    again = [np.asarray(image, dtype=int) for image in load_class_images(pipe, "dog", 7, 16, tmp_path)]
    assert all(np.abs(new - old).mean() < 0.5 for new, old in zip(again, good, strict=True)), "but for float rounding"
    assert all(np.array_equal(Image.open(file), new) for file, new in zip(files, again, strict=True))
    assert {file: file.stat().st_mtime_ns for file in files[5:]} == kept, "the good ones are kept"
    assert sorted(folder.iterdir()) == files


# A run's own files


@pytest.fixture(scope="module")
def begun(tmp_path_factory, photos, base_folder):
    """A run that was stopped after its third step of five, with checkpoints of steps 2 and 3; its configuration; and
    the weights it comes to without a stop."""
    root = tmp_path_factory.mktemp("begun")
    values = {"name": "Rex", "photos": [str(photos)], "class_noun": "dog", "base": str(base_folder), "device": "cpu",
              "resolution": 64, "batch_size": 2, "learning_rate": 1e-2, "steps": 5, "checkpoint_every": 2}  # fmt: skip
    config = configs.parse(values | LEAN)
    whole = weights(train(config, root / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, root / "out", [StopAfter(3)])
    return config, root / "out" / "Rex", whole


@pytest.fixture
def stopped(begun, tmp_path):
    """The same in a copy of its folder."""
    config, folder, whole = begun
    return config, Run(shutil.copytree(folder, tmp_path / "out" / "Rex")), whole


@pytest.mark.parametrize("how", DAMAGED)
def test_a_run_goes_on_without_its_state_and_its_log(stopped, tmp_path, how):
    config, run, whole = stopped
    damage(run.folder / "state.json", DAMAGED[how])
    damage(run.folder / "events.jsonl", DAMAGED[how])
    (job,) = Queue(tmp_path / "out").jobs()
    assert (job.status, job.step, job.steps) == ("died", 3, 5), "as its other files say"
    assert torch.equal(weights(train(config, tmp_path / "out", resume=True)), whole)
    assert list(progress.read(run).losses) == [4, 5] and run.finished
    damage(run.folder / "state.json", DAMAGED[how])
    assert run.finished and Queue(tmp_path / "out").job("Rex").status == "finished"


@pytest.mark.parametrize("file", ["training", "adapter"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(stopped, tmp_path, file):
    config, run, whole = stopped
    broken = run.checkpoint(3) / f"{file}.safetensors"
    broken.write_bytes(broken.read_bytes()[:300])
    assert torch.equal(weights(train(config, tmp_path / "out", resume=True)), whole)
    assert any("can't be read" in notice for notice in progress.read(run).notices)


def test_sample_pictures_that_cannot_be_read_are_not_scored(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file in files:
        Image.new("RGB", (40, 40), "red").save(file)
    files[1].write_bytes(files[1].read_bytes()[:60])

    class Judge:
        def embed_images(self, images):
            return torch.ones(len(images), 1)

        def embed_texts(self, texts):
            return torch.ones(len(texts), 1)

    rounds = {0: files[:1], 2: files[:2], 4: files[2:], 6: [tmp_path / "gone.png"]}
    found = scoring.score_rounds(rounds, ["a", "b"], [Image.new("RGB", (40, 40))], Judge())
    assert sorted(found) == [0, 4]


def test_lines_of_the_log_that_are_no_events_cost_only_themselves(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "events.jsonl").write_bytes(b'3\n[1]\n"x"\n\0\0\0\nnull\n{"event": "notice", "message": "here"}\n')
    assert progress.read(run).notices == ["here"]


# The queue


def test_a_damaged_queue_is_made_again_from_what_its_runs_say(settings, tmp_path):
    queue = Queue(tmp_path)
    for name in ("b", "a", "c"):
        queue.add(settings(name=name))
    os.utime(tmp_path / "b" / "state.json", (1, 1))
    Run(tmp_path / "c").write_state("stopped", 0, 4)
    for content in (b"", b'["b", "a', b"\0\0", b'{"a": 1}'):
        (tmp_path / ".queue" / "waiting.json").write_bytes(content)
        assert queue.waiting() == ["b", "a"], "the oldest first"
        assert [job.status for job in queue.jobs()] == ["waiting", "waiting", "stopped"]
    queue.move("a", 0)
    assert json.loads((tmp_path / ".queue" / "waiting.json").read_text()) == ["a", "b"]


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_note_of_the_run_in_progress_stops_no_worker(settings, tmp_path, how):
    queue = Queue(tmp_path)
    run = queue.add(settings(**LEAN, steps=1))
    damage(tmp_path / ".queue" / "current.json", DAMAGED[how])
    assert [job.status for job in queue.jobs()] == ["waiting"]
    damage(tmp_path / ".queue" / "waiting.json", b"[]")
    dispatch.dispatch(queue)
    assert not (tmp_path / ".queue" / "current.json").exists() and run.state["status"] == "waiting"


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_measurement_is_none(settings, tmp_path, how):
    config, place = settings(), tmp_path / ".queue" / "calibrations" / f"{calibration.cost_key(settings())}.json"
    place.parent.mkdir(parents=True)
    damage(place, DAMAGED[how])
    assert calibration.known(tmp_path, config) is None
    place.write_text('{"of_another_version": 1}')
    assert calibration.known(tmp_path, config) is None
    calibration.save(Calibration(step=1.0), place)
    assert calibration.known(tmp_path, config) == Calibration(step=1.0)


# Pictures that are NaN


def test_class_pictures_that_are_nan_end_the_run_and_sample_pictures_are_left_out(settings, tmp_path):
    """A run on black class pictures would learn from them; without sample pictures it learns all the same."""
    broken, heard = tiny_pipe(), []
    with torch.no_grad():
        broken.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(GenerationError, match="'a photo of a dog' with seed 0 came out as NaN"):
        train(settings(), tmp_path, pipe=broken)
    assert not list((tmp_path / ".cache").rglob("*.png")) and Run(tmp_path / "Rex").state["status"] == "failed"
    samples = LEAN | {"sample_prompts": ["a {subject}"]}
    adapter = train(settings(**samples, steps=2), tmp_path, [heard.append], pipe=tiny_pipe_with(broken.vae))
    assert adapter.is_file() and not Run(tmp_path / "Rex").samples()
    said = [event.message for event in heard if isinstance(event, Notice)]
    assert [message.partition(":")[0] for message in said] == [f"no sample images at step {n}" for n in (0, 2)]


def tiny_pipe_with(vae):
    pipe = tiny_pipe()
    pipe.register_modules(vae=vae)
    return pipe


# Drafts and votes


@pytest.fixture
def draft(tmp_path):
    (tmp_path / "in").mkdir()
    draft = Draft(tmp_path / "draft")
    draft.add(sorted(save_photos(tmp_path / "in", 3).glob("*.jpg")))
    draft.save_values(noun="dog")
    return draft


@pytest.mark.parametrize("how", DAMAGED)
def test_a_draft_without_its_list_keeps_its_photos(draft, how):
    damage(draft.folder / "draft.json", DAMAGED[how])
    assert [photo.file for photo in draft.read().photos] == ["0.jpg", "1.jpg", "2.jpg"]
    draft.save_values(noun="cat")
    assert draft.read().values == {"noun": "cat"} and len(draft.photos(64)[0]) == 3


def test_photos_of_a_draft_that_are_gone_or_damaged_are_left_out_and_named(draft, tmp_path):
    (draft.folder / "photos" / "0.jpg").unlink()
    cut = draft.folder / "photos" / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:200])
    photos, warnings = draft.photos(64)
    assert [photo.path.name for photo in photos] == ["2.jpg"]
    assert [warning.message for warning in warnings if warning.message.startswith("1.jpg: is ")]
    draft.copy_photos(tmp_path / "copies")
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["2.jpg"]
    for file in ("0.jpg", "gone.jpg"):
        with pytest.raises(ValueError, match="has been removed"):
            draft.photo(file, 64)


def test_photos_whose_names_differ_in_case_or_accents_alone_are_two_files(draft, tmp_path):
    """The disks of Windows and macOS take such names for one."""
    for number, name in enumerate(("Été.jpg", "e\u0301te\u0301.jpg", "ÉTÉ.jpg", "con.jpg", "Aux.png")):
        Image.new("RGB", (90, 90), (0, 50 * number, 0)).save(tmp_path / name)
        draft.add([tmp_path / name])
    stems = [photo.file.rpartition(".")[0] for photo in draft.read().photos]
    assert len({configs.validated_name(stem).casefold() for stem in stems}) == 8


def test_torn_votes_cost_only_themselves(tmp_path):
    votes.record(Vote("subject", "HRA", "LoRA", at=0), tmp_path)
    with (tmp_path / "votes.jsonl").open("ab") as file:
        file.write(b'{"question": "prom')
    assert votes.upcoming(tmp_path) == 1
    votes.record(Vote("prompt", "HRA", "LoRA", at=1), tmp_path)
    (tmp_path / "votes.jsonl").write_bytes(b"\0\0\n[1]\n{}\n" + (tmp_path / "votes.jsonl").read_bytes())
    assert [vote.at for vote in votes.recorded(tmp_path)] == [0, 1]


# Windows


def test_a_run_is_trained_stopped_and_resumed_by_the_rules_of_windows(windows, settings, tmp_path):  # noqa: F811
    few = {
        "prior_loss_weight": 1.0,
        "num_class_images": 1,
        "sample_prompts": ["a {subject}"],
        "sample_every": 0,
        "steps": 2,
    }
    config = settings(**LEAN | few)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, [StopAfter(1)])
    adapter = train(config, tmp_path, resume=True)
    assert adapter.is_file() and not windows
    queue = Queue(tmp_path)
    for name in ("a", "b"):
        queue.add(settings(name=name))
    queue.move("b", 0)
    queue.cancel("a")
    assert queue.waiting() == ["b"]


def test_memory_is_known_on_windows(windows):  # noqa: F811
    assert measure.forget_peak() == measure.peak_memory() == PEAK
    assert "load average" not in measure.machine()


@pytest.mark.parametrize(
    ("code", "said"),
    [(-9, "killed, most likely for lack of memory"), (-11, "ended by signal SIGSEGV"), (1, "ended with code 1"),
     (0xC0000005, "ended with code 3221225477")],
)  # fmt: skip
def test_why_a_process_ended_is_said_everywhere(windows, code, said):  # noqa: F811
    assert said in dispatch.cause(code)


def test_a_stop_needs_no_signal_from_another_process(settings, tmp_path):
    """What the queue asks for is a file, which every system has; the process does the rest itself."""
    own, number = Queue(tmp_path), signal.SIGTERM
    run = own.add(settings())
    own.write_current("Rex", 1)
    before = signal.getsignal(number)
    try:
        signal.signal(number, signal.default_int_handler)
        with FileLock(own.dispatcher_lock), pytest.raises(KeyboardInterrupt):
            own.stop("Rex")
            worker.watch_for_stop(own, "Rex")
            for _ in range(100):
                time.sleep(0.05)
    finally:
        signal.signal(number, before)
    assert run.state["status"] == "waiting"
