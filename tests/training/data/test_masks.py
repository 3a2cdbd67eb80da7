"""Masks of the subject: files, transparency, GrabCut; their weights in the loss; errors."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import StopAfter, stir, weights
from PIL import Image, ImageOps
from sample_photos import scene
from sessions import make_session

from training.batch import make_batches
from training.data.dataset import load_dataset
from training.data.latent_cache import mask_weights
from training.data.masks import grabcut
from training.data.photo import PhotoError, Upright
from training.loop import train
from training.runs.events import Notice
from training.runs.identity import PhotoRecord
from training.runs.run_folder import Run, RunError
from training.step import batch_loss
from training.validation import validation_loss


def left_half(width=160, height=160):
    """A mask that is white in the left half."""
    mask = Image.new("L", (width, height))
    mask.paste(255, (0, 0, width // 2, height))
    return mask


@pytest.fixture
def masked(save):
    """Save photo 0.png with the mask of its left half, and return its path."""
    save(left_half(), "photos/0.mask.png")
    return save(scene(0), "photos/0.png")


def test_a_mask_file_belongs_to_its_photo(masked, save):
    save(scene(1), "photos/1.png")
    for paths in ([masked.parent], sorted(masked.parent.iterdir())):
        masks = [photo.mask for photo in load_dataset(paths, 64).photos]
        assert [mask and mask.size for mask in masks] == [(64, 64), None]
        assert np.asarray(masks[0]).mean(0)[[0, 20, 44, 63]].tolist() == [255, 255, 0, 0]
    assert load_dataset([masked], 64, mask="off").photos[0].mask is None
    save(left_half(), "photos/2.mask.png")
    (warning,) = load_dataset([masked.parent], 64).warnings
    assert "2.mask.png: no photo in the folder has this name. The mask of dog.jpg is dog.mask.png" in warning.message


def test_a_mask_is_cropped_as_its_photo(save):
    """A mask that is the photo itself, in grey, shows the same part."""
    photo = scene(0, 400, 132)
    save(photo.convert("L"), "a.mask.png")
    path = save(photo, "a.png")
    for mode, box in (("bucket", None), ("smart", None), ("letterbox", None), ("center", (10, 20, 190, 120))):
        loaded = load_dataset([path], 128, mode, box and {path: box}).photos[0]
        grey, mask = (np.asarray(i, float) for i in (loaded.image.convert("L"), loaded.mask))
        inside = mask > 0  # the padding of a letterbox is outside of the mask
        assert np.abs(grey - mask)[inside].mean() < 12 and inside.mean() == pytest.approx(
            0.33 if mode == "letterbox" else 1, abs=0.02
        )


def test_a_mask_is_that_of_the_upright_photo(save):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(left_half(200, 100).transpose(Image.Transpose.ROTATE_270), "a.mask.png")
    upright = load_dataset([save(scene(0, 200, 100), "a.jpg", exif=exif)], 64, "letterbox").photos[0]
    assert np.asarray(upright.mask)[:, 32].tolist() == pytest.approx([255] * 32 + [0] * 32, abs=64)
    save(left_half(200, 100), "a.mask.png")
    with pytest.raises(PhotoError, match=r"a.mask.png: the mask has 200×100 pixels, but the upright photo has 100×200"):
        load_dataset([upright.path], 64)


def test_transparency_is_a_mask_if_asked_for(save):
    photo = scene(0)
    photo.putalpha(left_half())
    path = save(photo, "a.png")
    assert load_dataset([path], 64).photos[0].mask is None
    mask = load_dataset([path], 64, mask="alpha").photos[0].mask
    assert np.asarray(mask).mean(0)[[0, 63]].tolist() == [255, 0]
    opaque = save(scene(1), "b.png")
    assert load_dataset([opaque], 64, mask="alpha").photos[0].mask is None
    save(ImageOps.invert(left_half()), "a.mask.png")
    both = load_dataset([path], 64, mask="alpha").photos[0].mask
    assert np.asarray(both).mean(0)[[0, 63]].tolist() == [0, 255], "a file comes first"


def on_grass(box=(60, 40, 140, 120), size=(200, 160)):
    """A red ball on green noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (size[1], size[0], 3)) + np.array([20, 150, 20])
    y, x = np.mgrid[: size[1], : size[0]]
    centre, radius = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), (box[2] - box[0]) / 2
    inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
    pixels[inside] = rng.integers(0, 40, (inside.sum(), 3)) + np.array([200, 20, 20])
    return Image.fromarray(pixels.astype(np.uint8)), inside


@pytest.mark.parametrize("box", [None, (30, 10, 170, 150)])
def test_grabcut_finds_the_subject(save, box):
    pytest.importorskip("cv2")
    image, inside = on_grass()
    found = np.asarray(grabcut(Upright(image, (1, 1), image.size, ""), box)) > 0
    assert (found & inside).sum() / (found | inside).sum() > 0.95
    photo = load_dataset([save(image, "a.png")], 64, "letterbox", mask="auto").photos[0]
    assert 0.1 < np.asarray(photo.mask).mean() / 255 < 0.25


def test_a_photo_in_which_no_subject_is_found_is_trained_whole(save):
    pytest.importorskip("cv2")
    dataset = load_dataset([save(Image.new("RGB", (128, 128), "navy"), "a.png")], 64, mask="auto")
    assert dataset.photos[0].mask is None
    assert "a.png: no subject was found for its mask, so all of it is trained" in [
        w.message[:65] for w in dataset.warnings
    ]


def test_rembg_makes_masks_if_it_is_installed(save, monkeypatch):
    """A stand-in with rembg's function: its weights can't be had here."""

    def remove(image, only_mask):
        assert only_mask and image.mode == "RGB"
        return left_half(*image.size)

    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace(remove=remove))
    assert np.asarray(load_dataset([save(scene(0), "a.png")], 64, mask="rembg").photos[0].mask).mean() > 100


@pytest.mark.parametrize(("mode", "package", "advice"), [
    ("auto", "cv2", r"--mask auto needs OpenCV: pip install 'hra-diffusion\[masks\]'"),
    ("rembg", "rembg", r"--mask rembg needs rembg: pip install 'rembg\[cpu\]'"),
])  # fmt: skip
def test_a_missing_package_is_named(save, monkeypatch, mode, package, advice):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PhotoError, match=advice):
        load_dataset([save(scene(0), "a.png")], 64, mask=mode)


def test_unusable_masks_are_refused(masked):
    file = masked.with_name("0.mask.png")
    for content, message in (
        (left_half(80, 80), "the mask has 80×80 pixels, but the upright photo has 160×160"),
        (Image.new("L", (160, 160)), "the mask is black in the whole crop"),
    ):
        content.save(file)
        with pytest.raises(PhotoError, match=message):
            load_dataset([masked], 64)
    file.write_bytes(b"not a picture")
    with pytest.raises(PhotoError, match=r"0.mask.png: the mask can't be read"):
        load_dataset([masked], 64)


def test_weights_of_latent_positions():
    half = left_half(64, 64)
    weights = mask_weights([half, None], (8, 8), flip=True, unmasked_weight=0.2, normalize=False)
    assert weights.shape == (2, 2, 1, 8, 8) and weights[1].eq(1).all()
    assert weights[0, 0, 0, 0].tolist() == pytest.approx([1] * 4 + [0.2] * 4)
    assert weights[0, 1].equal(weights[0, 0].flip(-1)), "mirrored as its photo"
    edge = mask_weights([left_half(64, 64).resize((72, 64))], (8, 8), False, 0.0, False)
    assert 0 < float(edge[0, 0, 0, 0, 4]) <= 1, "pixels of a position are averaged"
    normalised = mask_weights([half, None], (8, 8), False, 0.2, normalize=True)
    assert normalised.mean(dim=(1, 2, 3, 4)).tolist() == pytest.approx([1, 1])
    assert mask_weights([None, None], (8, 8), True, 0.2, False) is None


def test_normalised_masks_weigh_a_photo_as_one_without(settings, masked, tmp_path):
    config = settings(photos=[str(masked)], normalize_masked_area_loss=True, prior_loss_weight=0)
    (cache,) = make_session(config, tmp_path).photos
    assert cache.masks.mean() == pytest.approx(1) and cache.masks.max() > 1.5


@pytest.mark.parametrize("changes", [{}, {"loss_type": "smooth-l1"}, {"preservation": "base-output"}], ids=str)
def test_the_loss_ignores_the_background(settings, save, tmp_path, changes):
    """With weight 0 outside, the gradient with respect to the prediction vanishes there, also in mirrored views."""
    save(left_half(), "p/0.mask.png")
    save(scene(0), "p/0.png")
    config = settings(photos=[str(tmp_path / "p")], unmasked_weight=0, flip=True, batch_size=4, **changes)
    session = make_session(config, tmp_path)
    stir(session.parameters.values())
    (batch,) = make_batches(session, 0)
    assert batch.mask is not None and batch.mask[4:].eq(1).all(), "class images and captions have no mask"
    outputs = []
    session.denoiser.register_forward_hook(lambda module, given, output: outputs.append(output))
    session.denoiser.model.conv_out.weight.requires_grad_(True)
    loss = batch_loss(session, batch)
    (gradient,) = torch.autograd.grad(loss, outputs[-1:])
    background = batch.mask.eq(0).expand_as(gradient)
    assert background[:4].float().mean() == pytest.approx(0.5, abs=0.05) and not background[4:].any()
    assert gradient[background].eq(0).all() and gradient[~background].ne(0).float().mean() > 0.99
    columns = batch.mask[:4, 0, 0]
    assert {row[0].item() for row in columns} == {0, 1}, "some views are mirrored"


def test_the_validation_loss_ignores_the_background(settings, save, tmp_path):
    for number in range(4):
        save(scene(number), f"p/{number}.png")
    save(left_half(), "p/2.mask.png")
    config = settings(photos=[str(tmp_path / "p")], unmasked_weight=0, prior_loss_weight=0, validation="2.png")
    session = make_session(config, tmp_path)
    inside, masks = validation_loss(session), session.validation.masks
    assert masks is not None and session.photos[0].masks is None
    session.validation = replace(session.validation, masks=1 - masks)
    outside = validation_loss(session)
    session.validation = replace(session.validation, masks=None)
    assert min(inside, outside) > 0 and validation_loss(session) == pytest.approx(inside + outside, rel=1e-4)


def test_the_mask_belongs_to_the_identity_of_a_run(settings, masked, tmp_path):
    config = settings(photos=[str(masked.parent)], sample_prompts=[], prior_loss_weight=0, sample_every=0)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, [StopAfter(2)])
    run = Run(tmp_path / "Rex")
    (record,) = run.photo_records
    assert record == PhotoRecord.of(load_dataset([masked], 64).photos[0]) and record.mask
    with pytest.raises(RunError, match=r"unmasked_weight 0\.1, not 0\.5"):
        train(config.model_copy(update={"unmasked_weight": 0.5}), tmp_path, resume=True)
    ImageOps.invert(left_half()).save(masked.with_name("0.mask.png"))
    events = []
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, [events.append, StopAfter(3)], resume=True)
    assert run.photo_records == [record], "the mask that it began with"
    assert not [event.message for event in events if isinstance(event, Notice)], "a mask is no photo"
    Image.new("L", (64, 64), 255).save(run.folder / "masks" / "00.png")
    with pytest.raises(RunError, match=r"masks.00.png is missing or damaged"):
        train(config, tmp_path, resume=True)


def test_masks_change_what_is_learned(settings, masked, tmp_path):
    common = {"photos": [str(masked.parent)], "sample_prompts": [], "prior_loss_weight": 0, "steps": 2}
    with_mask, without, full = (
        weights(train(settings(**common, name=name, **more), tmp_path))
        for name, more in (("a", {}), ("b", {"mask": "off"}), ("c", {"unmasked_weight": 1}))
    )
    assert not torch.equal(with_mask, without) and torch.equal(full, without)
