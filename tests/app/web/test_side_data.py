"""Damaged files of the page: it opens all the same and reports what is wrong."""

import json
import warnings
from types import SimpleNamespace

import pytest
from damage import damage
from PIL import Image, PngImagePlugin
from visitors import Visitor

from app.web import compare, compare_plan, compare_results, generate_images, logins, run_view, status_bar
from app.web.drawing_queue import DrawingQueue
from hra_diffusion.comparison.compare import Variant
from hra_diffusion.comparison.compare import compare as run_compare
from hra_diffusion.comparison.storage import load_comparison
from hra_diffusion.errors import Note
from hra_diffusion.generation.png import PNG_KEY
from hra_diffusion.generation.requests import Settings
from training.runs.run_folder import Run


@pytest.mark.parametrize("content", [b"", b"abc", b"zz" * 32, b"\0" * 64, b"\xff" * 64, "folder"])
def test_a_damaged_salt_is_replaced(context, content):
    """With an empty one, visitors' folders could be guessed."""
    damage(context.output / ".salt", content)
    with pytest.warns(Note, match="set aside"):
        assert len(context.salt) == 32
    assert len(context.salt) == 32 and (context.output / ".salt").read_text() == context.salt.hex()
    assert context.visitor_folder(Visitor()).parent == context.output / "visitors"


@pytest.mark.parametrize("cut", [5, 30, 80])
def test_a_truncated_login_is_reported_at_the_start(tmp_path, cut):
    logins.add_user(tmp_path / "logins", "ann", "correct horse")
    logins.require_logins(tmp_path / "logins")
    (tmp_path / "logins").write_text((tmp_path / "logins").read_text()[:cut])
    with pytest.raises(ValueError, match="line 1 is not a login"):
        logins.require_logins(tmp_path / "logins")


def test_a_damaged_image_is_left_out(context):
    folder = context.visitor_folder(Visitor()) / "pictures"
    info = PngImagePlugin.PngInfo()
    settings = {"base": "toybox", "prompt": "a dog", "seed": 1, "adapters": {}, "negative_prompt": "", "steps": 2,
                "guidance_scale": 3.0, "scheduler": "dpm++", "width": 40, "height": 40}  # fmt: skip
    info.add_itxt(PNG_KEY, json.dumps(settings))
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 40), "red").save(folder / "00000-a.png", pnginfo=info)
    (folder / "00001-b.png").write_bytes(b"")
    (folder / "00002-c.png").write_bytes((folder / "00000-a.png").read_bytes()[:50])
    shown = generate_images.show_images(context, Visitor())
    assert shown.count("<figure") == 1 and "00000-a.png" in shown


@pytest.fixture
def compared(context, pipe):
    """The folder of a saved comparison."""
    folder = context.visitor_folder(Visitor()) / "compare" / "0001"
    photos = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green")]
    done = run_compare(pipe, [Variant("base", {}, "dog")], ["a {subject}"], [1, 2], Settings(steps=1), photos)
    compare_results.save(done, folder)
    return folder


def restore(context):
    parts = SimpleNamespace(shown=[None] * 10)
    return compare.Events(context, parts, DrawingQueue()).restore(Visitor())


def test_a_comparison_with_a_damaged_photo_is_shown(context, compared):
    (compared / "photos" / "00.png").write_bytes(b"\x89PNG")
    assert restore(context)[0].count("<img") == 4
    assert len(load_comparison(compared).photos) == 1


@pytest.mark.parametrize("file", ["results.json", "pictures/000-a-dog-seed1-base.png"])
@pytest.mark.parametrize("content", [b"", b'{"cells": [', b"{}", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDRxxxx"])
def test_a_damaged_comparison_is_reported_and_the_tab_opens(context, compared, file, content):
    assert (compared / file).exists()
    (compared / file).write_bytes(content)
    with warnings.catch_warnings(action="ignore", category=Note):
        shown = restore(context)
    assert "0001 holds no whole comparison" in shown[0] and len(shown) == 10


@pytest.mark.filterwarnings("ignore::hra_diffusion.errors.Note")
@pytest.mark.parametrize("file", ["config.yaml", "state.json", "events.jsonl", "photos.json", "photos/00.png"])
@pytest.mark.parametrize("content", [b"", b'{"na', b"\0\0"])
def test_a_run_with_damaged_files_is_shown(context, file, content):
    (context.output / "Rex" / file).write_bytes(content)
    status_bar.refresh(context, None)
    run_view.refresh(context, "Rex", None)
    assert [job.run.name for job in context.queue.jobs()] == ["Rex"]
    assert compare_plan.photos_of(Run(context.output / "Rex").adapter, 64)


@pytest.mark.filterwarnings("ignore::hra_diffusion.errors.Note")
def test_the_status_bar_shows_a_run_with_a_damaged_configuration(context):
    run = Run(context.output / "Rex")
    run.write_state("running", 2, 6)
    with run.locked():
        (run.folder / "config.yaml").write_text("")
        with pytest.warns(Note, match="those in the newest checkpoint are used"):
            assert "Rex" in status_bar.refresh(context, None)[0]


@pytest.mark.parametrize("base", [r"C:\models\sd15.safetensors", "/models/sd15.safetensors", "someone/sd15"])
def test_a_base_is_shown_without_its_path(base):
    assert status_bar.base_name(base) == "sd15"
