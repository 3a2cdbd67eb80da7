"""Whose things are whose, over HTTP on a page with logins: two of them, and an admin."""

import os
import secrets
import shutil
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from attacker import GENERATE, Attacker
from PIL import Image
from serving import serving
from visitors import Visitor

from app.web import cleaning, logins, quotas, run_list
from app.web.limits import Limits
from hra_diffusion import trash
from hra_diffusion.errors import UserError
from training import config as configs
from training.runs import owners
from training.runs.owners import LOCAL, Owner
from training.runs.queue import Queue
from training.runs.run_folder import Run

PASSWORD = "correct horse"
KEY, CHECKPOINT = "Rex/Rex.safetensors", "Rex/checkpoints/000003/adapter.safetensors"
COMPARE = [[KEY], False, "a {subject}", 0, 1, 1, 2, False]
"""Values of the Compare tab: one small image."""


@pytest.fixture(scope="module")
def office(trained, tmp_path_factory, base_folder):
    """A page with a run of ann's and one that has no owner."""
    output = shutil.copytree(trained, tmp_path_factory.mktemp("office") / "outputs")
    shutil.copytree(output / "Rex", output / "Old")
    (output / "Old" / "Rex.safetensors").rename(output / "Old" / "Old.safetensors")
    owners.write(output / "Rex", Owner(owner="ann"))
    file = output.parent / "logins"
    for name in ("ann", "bob", "eve"):
        logins.add_user(file, name, PASSWORD, admin=name == "eve")
    with serving(output, base_folder, auth=file) as page:
        people = {name: Attacker(page) for name in ("ann", "bob", "eve")}
        for name, person in people.items():
            assert person.web.post("login", data={"username": name, "password": PASSWORD}).status_code == 200
        yield SimpleNamespace(page=page, output=output, **people)


@pytest.fixture
def shared(office):
    """The same while ann shares her run."""
    owners.write(office.output / "Rex", Owner(owner="ann", shared=True))
    Queue(office.output).job("Rex")
    yield office
    owners.write(office.output / "Rex", Owner(owner="ann"))
    Queue(office.output).job("Rex")


def function(person, name):
    """An event by the module and name of its handler, such as "library.share"."""
    module, _, name = name.rpartition(".")
    return next(fn for fn in person.page.fns.values() if fn.name == name and fn.fn.__module__.endswith(module))


def said(person, name, data=(), event=None):
    """What a person is told by an event: its output or error, and messages."""
    status, output, messages = person.outcome(function(person, name), list(data), event)
    return f"{status} {output} {messages}"


def log(person):
    """The log of the run beside the form."""
    return person.outcome(function(person, "run_view.watch"), [None, None])[1]["data"][3]


def overview(person):
    """All that lists adapters and runs."""
    events = {"library.refresh": ["", None], "generate.choices": [], "compare.choices": [], "status_bar.watch": [None]}
    new = {"session_hash": secrets.token_hex(8)}  # as after a reload: nothing has been sent
    return " ".join(str(person.outcome(function(person, name), data, **new)) for name, data in events.items())


def test_people_see_their_own_and_admins_see_all(office):
    for person, seen in ((office.ann, ["Rex"]), (office.bob, []), (office.eve, ["Rex", "Old"])):
        text = overview(person)
        assert [name for name in ("Rex", "Old") if name in text] == seen
    assert "of ann" in overview(office.eve) and "of ann" not in overview(office.ann)


def test_a_foreign_key_answers_like_one_that_does_not_exist(office):
    missing = KEY.replace("Rex", "Max")
    events = [
        ("library.choose", ["", None, None], {"do": "open", "key": KEY}),
        ("generate.generate", [[KEY], *GENERATE[1:]], None),
        ("generate.generate", [[CHECKPOINT], *GENERATE[1:]], None), ("compare.run", COMPARE, None),
        ("show_prompt", [[KEY], "a"], None),
        ("run_view.show", [], {"do": "show", "run": "Rex"}), ("status_bar.act", [], {"do": "delete", "run": "Rex"}),
        ("status_bar.act", [], {"do": "stop", "run": "Rex"}), ("status_bar.act", [], {"do": "resume", "run": "Rex"}),
    ]  # fmt: skip
    for name, data, event in events:
        answers = []
        for wanted in ("Rex", "Max"):
            given = [str(data).replace("Rex", wanted), str(event).replace("Rex", wanted)]
            answer = said(office.bob, name, *map(eval, given))
            answers.append(answer.replace(wanted, "NAME"))
        assert "'error': '" in answers[0] or "400" in answers[0], (name, answers[0])
        assert answers[0].split("'duration'")[0] == answers[1].split("'duration'")[0], name
    assert missing not in overview(office.bob)
    samples = sorted((office.output / "Rex" / "samples").glob("*.png"))
    codes = [who.web.get(f"gradio_api/file={samples[0]}").status_code for who in (office.ann, office.bob, office.eve)]
    assert codes == [200, 403, 200]


def test_what_is_shared_is_used_by_all_and_changed_by_its_owner_alone(shared):
    bob, sample = shared.bob, next((shared.output / "Rex" / "samples").glob("*.png"))
    assert "Rex" in overview(bob) and "Old" not in overview(bob)
    assert bob.web.get(f"gradio_api/file={sample}").status_code == 200
    assert "'error': None" not in said(bob, "library.choose", ["", None, None], {"do": "open", "key": KEY})
    assert "<img" in said(bob, "generate.generate", [[KEY], *GENERATE[1:]])
    for name, data, event in (
        ("library.rename", ["Mine"], None), ("library.delete", [""], None), ("library.share", [False], None),
        ("status_bar.act", [], {"do": "delete", "run": "Rex"}), ("status_bar.act", [], {"do": "resume", "run": "Rex"}),
    ):  # fmt: skip
        fn = function(bob, name)
        values = [*[None] * (len(fn.inputs) - len(data)), *data]
        assert "only its owner" in said(bob, name, values, event), name
    assert (shared.output / KEY).is_file() and owners.read(shared.output / "Rex").shared


def test_photos_and_logs_are_shown_to_their_owner_alone(shared):
    photos = {}
    for name in ("ann", "bob", "eve"):
        person = getattr(shared, name)
        answer = said(person, "compare.run", COMPARE)
        assert "pictures in" in answer, answer
        photos[name] = answer.count("data:image/")
    assert photos["bob"] < photos["ann"] == photos["eve"]
    assert "step 6 of 6" in log(shared.ann) and log(shared.bob) == ""
    for photo in [*(shared.output / "Rex" / "photos").iterdir(), *(shared.output / "photos" / "Rex").iterdir()]:
        for person in (shared.ann, shared.bob, shared.eve):
            assert person.web.get(f"gradio_api/file={photo}").status_code == 403


def test_the_owner_and_admins_share_and_stop_sharing(office):
    for person, wanted in ((office.ann, True), (office.eve, False)):
        said(person, "library.choose", ["", None, None], {"do": "open", "key": KEY})
        said(person, "library.share", [None, wanted])
        assert owners.read(office.output / "Rex") == Owner(owner="ann", shared=wanted)
        assert ("Rex" in overview(office.bob)) is wanted


def test_only_admins_change_the_base_and_the_device_of_all(office):
    change, base = function(office.bob, "status_bar.change"), office.page.config["components"]
    values = [next(part["props"]["value"] for part in base if part["props"].get("elem_id") == "base"), "cpu"]
    assert "only an admin" in str(office.bob.outcome(change, values))
    assert "only an admin" in said(office.ann, "base_chooser.use", ["float32"], {"do": "use", "base": values[0]})
    assert "only an admin" not in str(office.eve.outcome(change, values))


def test_another_persons_run_in_progress_has_no_name(office, monkeypatch):
    run = Queue(office.output).job("Rex").run
    with run.locked():
        run.write_state("running", 3, 6)
        line = {name: overview(getattr(office, name)) for name in ("ann", "bob")}
    run.write_state("finished", 6, 6)
    assert "another person’s run" in line["bob"] and "Rex" not in line["bob"] and 'data-do="stop"' not in line["bob"]
    assert "Rex" in line["ann"] and "another person" not in line["ann"]


def test_the_bin_is_ones_own(office):
    shutil.copytree(office.output / "Rex", office.output / "Gone")
    (office.output / "Gone" / "Rex.safetensors").unlink()
    Queue(office.output).job("Gone").run.write_state("stopped", 3, 6)
    assert "in the bin" in said(office.ann, "status_bar.act", [], {"do": "delete", "run": "Gone"})
    (key,) = [path.name for path in (office.output / ".bin").glob("*-Gone")]
    assert key in overview(office.ann) and key in overview(office.eve) and key not in overview(office.bob)
    event = {"do": "restore", "key": key}
    assert "not in the bin any more" in said(office.bob, "library.restore", [""], event)
    assert "is restored" in said(office.ann, "library.restore", [""], event)
    assert owners.read(office.output / "Gone") == Owner(owner="ann")
    shutil.rmtree(office.output / "Gone")


def test_an_import_belongs_to_whoever_imports_it(office):
    file = office.bob.upload("Lent.safetensors", (office.output / KEY).read_bytes())
    office.bob.outcome(function(office.bob, "library.describe"), [file])
    assert "is imported" in said(office.bob, "library.confirm", ["", None], {"do": "import"})
    assert owners.read(office.output / "Rex 2") == Owner(owner="bob")
    assert "Rex 2" in overview(office.bob) and "Rex 2" not in overview(office.ann)
    shutil.rmtree(office.output / "Rex 2")


def test_guests_without_logins_see_their_own_and_what_has_no_owner(trained, tmp_path, base_folder):
    from app.inference_session import InferenceSession
    from app.web.context import AppContext

    output = shutil.copytree(trained, tmp_path / "outputs")
    context = AppContext(output, InferenceSession(str(base_folder), "cpu"), [str(base_folder)])
    guest, other = (
        context.for_visitor(gr.Request(username=None, cookies={"hra_visitor": name})) for name in ("guest", "other")
    )
    assert guest.adapter_path(KEY) and not guest.person.may_change(guest.owner(output / "Rex"))
    for owner in (Owner(owner=other.person.name), Owner(owner="ann", shared=True)):
        owners.write(output / "Rex", owner)
        context.rescan()
        assert guest.adapter_choices() == []
        with pytest.raises(ValueError, match="no longer exists"):
            guest.adapter_path(KEY)
    owners.write(output / "Rex", Owner(owner=guest.person.name))
    context.rescan()
    assert guest.own_adapter_path(KEY) and len(guest.adapter_choices()) > 1


def test_a_damaged_owner_file_belongs_to_the_admins(office):
    (office.output / "Rex" / "owner.json").write_text("{")
    with pytest.warns(UserWarning, match="is damaged"):
        assert owners.read(office.output / "Rex") == Owner()
    owners.write(office.output / "Rex", Owner(owner="ann"))


@pytest.fixture
def strict(trained, tmp_path, base_folder):
    """A page without a server that bob, who has a login, sees. Its limits are small."""
    from app.inference_session import InferenceSession
    from app.web.context import AppContext

    output = shutil.copytree(trained, tmp_path / "outputs")
    logins.add_user(tmp_path / "logins", "bob", PASSWORD)
    config = configs.read(output / "Rex" / "config.yaml")
    configs.write(config.model_copy(update={"photos": (output / "photos" / "Rex",)}), output / "Rex" / "config.yaml")
    session = InferenceSession(str(base_folder), "cpu")
    context = AppContext(output, session, [str(base_folder)], auth=tmp_path / "logins", limits=Limits(2, 5, 0.001))
    return context.for_visitor(BOB)


BOB = Visitor("b")
BOB.username = "bob"


def enter(context, name):
    """Enter a stopped run of the visitor's on the photos of Rex."""
    rex = next(path for path in (context.output / "Rex", *context.output.glob(".bin/*-Rex")) if path.is_dir())
    config = Run(rex).config.model_copy(update={"name": name})
    run = context.queue.add(config, Owner(owner=context.person.name))
    run.write_state("stopped", 0, config.steps)
    return run


def test_waiting_runs_are_limited_also_when_many_are_queued_at_once(strict, monkeypatch):
    monkeypatch.setattr(Queue, "start", lambda queue: None)
    for name in ("a", "b", "c", "d"):
        enter(strict, name)
    refused = []

    def resume(name):
        try:
            run_list.act_on_run(strict, "resume", name)
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=resume, args=(name,)) for name in ("a", "b", "c", "d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 2 and "at most 2 may" in refused[0]
    assert len(strict.queue.waiting()) == 2
    stopped = next(name for name in "abcd" if name not in strict.queue.waiting())
    run_list.act_on_run(replace(strict, person=LOCAL), "resume", stopped)
    assert len(strict.queue.waiting()) == 3, "admins have no limits"


def test_pictures_of_an_hour_are_limited(strict, monkeypatch):
    quotas.count_images(strict, BOB, 3)
    with pytest.raises(UserError, match=r"3 pictures in an hour, and 3 more: at most 5 .* in 60 min"):
        quotas.count_images(strict, BOB, 3)
    quotas.count_images(strict, BOB, 2)
    with pytest.raises(UserError, match="at most 5"):
        quotas.count_images(strict, BOB, 1)
    later = time.time() + 3700
    monkeypatch.setattr(time, "time", lambda: later)
    quotas.count_images(strict, BOB, 5)


def test_files_of_a_person_are_limited_in_all_places(strict):
    quotas.require_space(strict, BOB)
    size = quotas._bytes(strict.output, "bob", strict.visitor_folder(BOB), 0)
    enter(strict, "a")
    photos = sum(path.stat().st_size for path in (strict.output / "photos" / "Rex").iterdir())
    binned = trash.move_to_trash(enter(strict, "b").folder, strict.output)
    (strict.output / ".bin" / binned / "large").write_bytes(bytes(2000))
    pictures = strict.visitor_folder(BOB) / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "0.png").write_bytes(bytes(1_000_000))
    used = quotas._bytes(strict.output, "bob", strict.visitor_folder(BOB), 1)
    assert size == 0 and used > 1_002_000 + photos
    quotas._bytes.cache_clear()
    with pytest.raises(UserError, match=r"take 0\.0 GB, and at most 0\.001 GB are yours"):
        quotas.require_space(strict, BOB)


def test_photos_are_deleted_with_the_last_run_that_uses_them(strict):
    """Photos of a deleted run used to stay in outputs/photos and in drafts for ever."""
    photos = strict.output / "photos" / "Rex"
    draft, other = strict.draft(BOB), strict.draft(Visitor("other"))
    for who in (draft, other):
        who.add(sorted(photos.glob("*.jpg")))
    extra = strict.output.parent / "own.png"
    Image.new("RGB", (100, 100), "red").save(extra)
    draft.add([extra])
    trash.move_to_trash(strict.output / KEY, strict.output)
    mine = trash.move_to_trash(enter(strict, "mine").folder, strict.output)
    (rex,) = (key for key in trash.keys(strict.output) if key.endswith("-Rex"))
    cleaning.delete_for_good(strict, rex)
    assert len(list(photos.iterdir())) == 3, "another run, in the bin, uses them"
    cleaning.delete_for_good(strict, mine)
    assert not photos.exists() and trash.keys(strict.output) == []
    assert [photo.file for photo in draft.read().photos] == ["own.png"] and len(other.read().photos) == 3


def test_the_page_deletes_what_has_expired_and_visitors_who_stay_away(strict):
    folders = [strict.visitor_folder(Visitor(name)) for name in ("gone", "here", "back")]
    for folder in folders:
        (folder / "pictures").mkdir(parents=True)
        (folder / "pictures" / "0.png").touch()
    old = time.time() - 31 * 86400
    for folder in (folders[0], folders[2]):
        for path in (folder / "pictures" / "0.png", folder / "pictures", folder):
            os.utime(path, (old, old))
    cleaning.note_visit(strict, Visitor("back"))
    cleaning.note_visit(strict, Visitor("new"))
    key = trash.move_to_trash(strict.output / KEY, strict.output)
    expired = f"{int(old)}-Rex"
    (strict.output / ".bin" / key).rename(strict.output / ".bin" / expired)
    cleaning.delete_expired(replace(strict, local=True))
    assert all(folder.exists() for folder in folders), "on loopback they stay"
    assert trash.keys(strict.output) == [] and not (strict.output / "photos" / "Rex").exists()
    cleaning.delete_expired(strict)
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_what_is_in_the_bin_is_deleted_at_once_if_its_owner_confirms(office):
    shutil.copytree(office.output / "Rex", office.output / "Gone")
    (office.output / "Gone" / "Rex.safetensors").unlink()
    Queue(office.output).job("Gone").run.write_state("stopped", 3, 6)
    said(office.ann, "status_bar.act", [], {"do": "delete", "run": "Gone"})
    (trashed,) = (office.output / ".bin").glob("*-Gone")
    asked = said(office.ann, "library.restore", [""], {"do": "ask", "key": trashed.name})
    assert "for good" in asked and trashed.is_dir()
    event = {"do": "delete", "key": trashed.name}
    assert "not in the bin any more" in said(office.bob, "library.confirm", ["", None], event) and trashed.is_dir()
    assert "Deleted for good" in said(office.ann, "library.confirm", ["", None], event) and not trashed.exists()
    assert (office.output / "photos" / "Rex").is_dir(), "Rex uses them"
