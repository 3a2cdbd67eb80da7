"""Aspect-ratio buckets: sizes, assignment, batches of one bucket, exact resume, two processes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import StopAfter, distance, tiny_xl_pipe, weights
from PIL import Image
from sample_photos import scene
from sessions import make_session

from training import config as configs
from training import step_graph
from training.batch import bucket_of_step, make_batches
from training.data.buckets import bucket_sizes, nearest_bucket
from training.data.dataset import load_dataset
from training.data.latent_cache import photo_time_ids
from training.loop import train
from training.runs.events import Validated
from training.runs.lookup import photos_of
from training.step_graph import two_steps_per_bucket

SIZES = [(256, 192), (400, 132), (130, 400), (390, 130)]
"""Sizes of photos, of which the first is in the square bucket at 128 pixels."""
WIDE, TALL, SQUARE = (192, 64), (64, 192), (128, 128)
BUCKETS = {"crop": "bucket", "resolution": 128, "num_class_images": 4, "sample_every": 0, "sample_prompts": []}


@pytest.fixture
def mixed(tmp_path):
    """A folder of photos for three buckets."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, size in enumerate(SIZES):
        scene(number, *size).save(folder / f"{number}.png")
    return folder


def test_sizes_follow_the_rule_of_sd_scripts():
    """The values are what make_bucket_resolutions of kohya-ss/sd-scripts returns with its default options."""
    assert bucket_sizes(512) == sorted({
        (256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576), (512, 512),
        (576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256),
    })  # fmt: skip
    assert max(bucket_sizes(2048)) == (3072, 1344) and max(bucket_sizes(4096)) == (4096, 4096)
    for resolution in (64, 128, 200, 1024):
        assert all(w % 64 == h % 64 == 0 and w * h <= resolution**2 for w, h in bucket_sizes(resolution))
        assert {(h, w) for w, h in bucket_sizes(resolution)} == {*bucket_sizes(resolution)}


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((4000, 3000), (576, 448)), ((3000, 4000), (448, 576)), ((3000, 2000), (640, 384)), ((1080, 1080), (512, 512)),
     ((2000, 1000), (704, 320)), ((9000, 900), (1024, 256))],
)  # fmt: skip
def test_a_photo_goes_to_the_bucket_that_crops_it_least(size, bucket):
    assert nearest_bucket(size, 512) == bucket
    assert nearest_bucket(size[::-1], 512) == bucket[::-1]


def test_photos_keep_their_aspect_ratio_up_to_a_small_cut(mixed):
    photos = load_dataset([mixed], 128, "bucket").photos
    assert [photo.image.size for photo in photos] == [SQUARE, WIDE, TALL, WIDE]
    assert [photo.crop for photo in photos[1:]] == [(2, 0, 398, 132), (0, 5, 130, 395), (0, 0, 390, 130)]
    middle = Image.open(mixed / "1.png").crop((2, 0, 398, 132)).resize(WIDE, Image.Resampling.LANCZOS)
    assert distance(photos[1].image, middle) < 0.01


def test_a_crop_box_decides_the_bucket(mixed):
    box = {mixed / "0.png": (0, 0, 64, 192)}
    assert load_dataset([mixed / "0.png"], 128, "bucket", box).photos[0].image.size == TALL


@pytest.mark.parametrize("size", [(401, 133), (131, 399), (97, 64), (64, 97), (333, 111), (1001, 1000)])
def test_a_cropped_photo_is_not_cropped_again(size, save):
    """A resumed run passes its crops as boxes."""
    path = save(scene(0, *size), "a.png")
    (photo,) = load_dataset([path], 128, "bucket").photos
    (again,) = load_dataset([path], 128, "bucket", {path: photo.crop}).photos
    assert again.crop == photo.crop and again.image.tobytes() == photo.image.tobytes()


def test_every_photo_is_seen_equally_often():
    counts = [3, 1, 2]
    taken = [bucket_of_step(counts, step, seed=4) for step in range(60)]
    assert [sum(bucket == k for bucket, _ in taken) for k in range(3)] == [30, 10, 20]
    for bucket in range(3):
        assert [turn for k, turn in taken if k == bucket] == list(range(10 * counts[bucket]))
    assert taken != [bucket_of_step(counts, step, seed=5) for step in range(60)]
    assert [bucket_of_step([7], step, 0) for step in range(9)] == [(0, step) for step in range(9)]


def seen_shapes(pipe):
    """The shapes of the latents that the UNet is given in training."""
    shapes = []
    pipe.unet.register_forward_pre_hook(lambda unet, given: shapes.append(tuple(given[0].shape)))
    return shapes


def test_batches_and_class_images_have_the_size_of_their_bucket(settings, mixed, tmp_path):
    """The class images are shared out over the buckets."""
    config = settings(**BUCKETS, photos=[str(mixed)], steps=8, gradient_accumulation_steps=2)
    session = make_session(config, tmp_path)
    sizes = sorted([TALL, SQUARE, WIDE])
    assert [2 * side for cache in session.photos for side in reversed(cache.mean.shape[-2:])] == [
        side for size in sizes for side in size
    ]
    assert [len(cache.mean) for cache in session.photos] == [len(cache.mean) for cache in session.class_images]
    assert sum(len(cache.mean) for cache in session.class_images) == 4
    steps = [[tuple(one.latents.shape) for one in make_batches(session, step)] for step in range(8)]
    assert all(len({*shapes}) == 1 and shapes[0][0] == 4 for shapes in steps), "one bucket in all batches of a step"
    assert len({shapes[0] for shapes in steps}) == 3


def test_all_processes_take_the_same_bucket_in_a_step(settings, mixed, tmp_path):
    session = make_session(settings(**BUCKETS, photos=[str(mixed)], prior_loss_weight=0), tmp_path)
    ranks = []
    for index in (0, 1):
        session.accelerator = SimpleNamespace(num_processes=2, process_index=index, device=torch.device("cpu"))
        ranks.append([make_batches(session, step)[0] for step in range(12)])
    for first, second in zip(*ranks, strict=True):
        assert first.latents.shape == second.latents.shape and not torch.equal(first.latents, second.latents)


def test_a_resumed_run_with_buckets_equals_an_uninterrupted_one(settings, mixed, tmp_path):
    """Two photos have masks, whose files are gone when it is resumed."""
    for number, size in enumerate(SIZES[:2]):
        mask = np.zeros((size[1], size[0]), np.uint8)
        mask[: size[1] // 2] = 255
        Image.fromarray(mask).save(mixed / f"{number}.mask.png")
    config = settings(**BUCKETS, photos=[str(mixed)], steps=4, flip=True, batch_size=1)
    whole = weights(train(config, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(2)])
    for file in mixed.glob("*.mask.png"):
        file.unlink()
    mixed.rename(tmp_path / "moved")
    adapter = train(config, tmp_path / "parts", resume=True)
    assert torch.equal(weights(adapter), whole)
    assert [image.size for image in photos_of(adapter, 64)] == [SQUARE, WIDE, TALL, WIDE]


def two_subjects(folder):
    """Save masks of the photos in a folder, and return the concepts of a run on them. Each has a wide photo."""
    for number, (width, height) in enumerate(SIZES):
        mask = Image.new("L", (width, height))
        mask.paste(255, (0, 0, width, height // 2))
        mask.save(folder / f"{number}.mask.png")
    files = [str(folder / f"{number}.png") for number in range(len(SIZES))]
    return [
        {"photos": files[:2], "class_noun": "dog", "trigger": "sks"},
        {"photos": files[2:], "class_noun": "teapot", "trigger": "qwe", "repeats": 2},
    ]


def test_each_subject_has_class_images_of_the_shapes_of_its_photos_and_its_repeats(settings, mixed, tmp_path):
    config = settings(**BUCKETS, photos=None, class_noun=None, concepts=two_subjects(mixed))
    session = make_session(config, tmp_path)
    assert [len(cache.mean) for cache in session.class_images] == [2, 2, 4], "tall, square and wide; four per subject"
    taken = [make_batches(session, step)[0].latents.shape[-2:] for step in range(6)]
    assert [taken.count(cache.mean.shape[-2:]) for cache in session.photos] == [2, 1, 3]


@pytest.mark.parametrize("preservation", ["class-images", pytest.param("base-output", marks=pytest.mark.slow)])
def test_buckets_and_masks_resume_with_subjects_captions_and_validation(settings, mixed, tmp_path, preservation):
    config = settings(
        **BUCKETS, photos=None, class_noun=None, concepts=two_subjects(mixed), caption="a {subject}, red, big",
        shuffle_captions=True, caption_dropout=0.3, loss_type="huber", input_perturbation=0.1, noise_offset=0.1,
        preservation=preservation, prior_loss_weight=1, validation="auto", validation_every=2, steps=4, batch_size=1,
    )  # fmt: skip
    whole, events = weights(train(config, tmp_path / "whole")), []
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(2), events.append])
    assert torch.equal(weights(train(config, tmp_path / "parts", [events.append], resume=True)), whole)
    assert len({event.step for event in events if isinstance(event, Validated)}) == 3
    assert len(list((tmp_path / "parts" / "Rex" / "masks").iterdir())) == 4


def test_smaller_batches_keep_the_photos_of_each_step(settings, mixed, tmp_path):
    """As a run that is out of memory makes them. The captions tell the photos apart."""
    for number in range(len(SIZES)):
        (mixed / f"{number}.txt").write_text(f"sks {number}")
    config = settings(**BUCKETS, photos=[str(mixed)], prior_loss_weight=0, caption_dropout=0)
    session = make_session(config, tmp_path)
    before = [make_batches(session, step)[0].text["ids"] for step in range(8)]
    session.config = session.config.model_copy(update={"batch_size": 1, "gradient_accumulation_steps": 2})
    after = [torch.cat([one.text["ids"] for one in make_batches(session, step)]) for step in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_each_bucket_has_its_own_graph(settings, mixed, tmp_path, monkeypatch):
    """A fake graph on the CPU, as in test_step_graph. It may only replay with the tensors that it has captured."""
    config = settings(**BUCKETS, photos=[str(mixed)], prior_loss_weight=0, steps=8, batch_size=1)
    eager = weights(train(config, tmp_path / "eager"))
    captured, replays = [], []

    def capture(function):
        step = function.__self__
        inputs = step.inputs
        captured.append(step.shape)
        function()

        def replay():
            assert step.inputs is inputs
            replays.append(step.shape)
            function()

        return replay

    monkeypatch.setitem(step_graph.CAPTURES, "cpu", capture)
    assert torch.equal(weights(train(config, tmp_path / "graph")), eager)
    assert len({*captured}) == len(captured) == 3 and len(replays) == 3 + 8


def test_a_graph_is_checked_with_two_steps_of_its_bucket(settings, mixed, tmp_path):
    session = make_session(settings(**BUCKETS, photos=[str(mixed)], prior_loss_weight=0), tmp_path)
    session.step = 5
    counts = [len(cache.mean) for cache in session.photos]
    for bucket, pair in enumerate(two_steps_per_bucket(session)):
        assert 5 <= pair[0] < pair[1]
        assert [bucket_of_step(counts, step, session.config.seed)[0] for step in pair] == [bucket, bucket]


def test_sdxl_is_conditioned_on_the_size_of_the_bucket(mixed, tmp_path):
    photo = load_dataset([mixed / "1.png"], 128, "bucket").photos[0]
    assert photo_time_ids(photo, flip=True).tolist() == [[132, 400, 0, 1, 64, 192]] * 2
    pipe, seen = tiny_xl_pipe(), []
    pipe.unet.register_forward_pre_hook(
        lambda unet, given, named: seen.append(named["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    values = {"name": "Rex", "photos": [str(mixed / "1.png")], "class_noun": "dog", "base": "tiny-xl", "steps": 1,
              "batch_size": 1, "checkpoint_every": 1, "device": "cpu", "gradient_checkpointing": False}  # fmt: skip
    train(configs.parse(values | BUCKETS | {"num_class_images": 1}), tmp_path, pipe=pipe)
    assert seen[-1].tolist() == [[132, 400, 0, 1, 64, 192], [64, 192, 0, 0, 64, 192]]


def test_buckets_are_the_default_for_real_bases_only():
    common = {"name": "a", "photos": ["."], "class_noun": "dog"}
    assert configs.parse(common).crop == "smart"
    assert configs.parse(common | {"base": "someone/a-model"}).crop == "bucket"
    assert configs.parse_run(common | {"base": "someone/a-model"}).crop == "smart", "a run of an earlier version"
