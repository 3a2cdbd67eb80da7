"""Choosing the base model: the notice about toybox, what may be chosen, and by whom."""

import shutil
from dataclasses import replace

import gradio as gr
import pytest
from fake_hub import fake_hub, online
from hub_page import choose_from_hub
from visitors import Visitor

from app.inference_session import InferenceSession
from app.web import base_chooser, base_download, base_view
from app.web.context import AppContext
from app.web.train_photos import sample_photos
from hra_diffusion.models import hub
from training.data.drafts import Draft


@pytest.fixture
def toybox(tmp_path):
    """A page on toybox that only this machine reaches."""
    return AppContext(tmp_path / "outputs", InferenceSession("toybox", "cpu"), ["toybox"], local=True)


@pytest.fixture
def own_photos(trained):
    return sorted((trained / "photos" / "Rex").glob("*.jpg"))


def test_own_photos_on_toybox_get_a_prominent_notice_and_sample_photos_do_not(toybox, own_photos, tmp_path):
    draft = Draft(tmp_path / "draft")

    def shown():
        text, opener = base_view.show_notice(toybox, draft)
        assert base_view.TOYBOX_PURPOSE in text, "always, before Train"
        return 'class="note big"' in text, opener["variant"]

    assert shown() == (False, "secondary"), "no photos yet"
    draft.add(sample_photos("octopus"))
    assert shown() == (False, "secondary")
    draft.add(own_photos)
    assert shown() == (True, "primary")


def test_own_photos_on_a_real_base_get_no_notice(context, own_photos, tmp_path):
    draft = Draft(tmp_path / "draft")
    draft.add(own_photos)
    text, _ = base_view.show_notice(context, draft)
    assert "tiny-sd" in text and "toybox" not in text.lower()


def test_a_folder_is_used_with_its_precision_and_is_in_the_list_from_then_on(toybox, base_folder):
    base_chooser.use_base(toybox, base_chooser.checked_path(f' "{base_folder}" '), "bfloat16")
    session = toybox.session
    assert (session.base, session.dtype, toybox.bases) == (str(base_folder), "bfloat16", ["toybox", str(base_folder)])
    assert str(session.pipe.unet.dtype) == "torch.bfloat16"
    known = base_view.show_known(toybox)
    assert "tiny-sd" in known and "in use" in known and 'data-base="toybox"' in known


def test_a_base_that_cannot_be_loaded_leaves_the_one_in_use(toybox, tmp_path):
    pickled = tmp_path / "model.ckpt"
    pickled.write_bytes(b"pickled")
    with pytest.raises(ValueError, match=r"not a \.safetensors file"):
        base_chooser.use_base(toybox, str(pickled), "float16")
    assert (toybox.session.base, toybox.session.dtype, toybox.bases) == ("toybox", "float32", ["toybox"])
    with pytest.raises(ValueError, match="no folder or file"):
        base_chooser.checked_path("/no/such/model")


def test_a_shared_page_offers_and_allows_the_command_lines_bases_only(toybox, base_folder):
    shared = replace(toybox, local=False)
    assert "listed when it was started" in base_view.show_known(shared)
    with gr.Blocks():
        chooser = base_chooser.build(shared)
    assert not chooser.elsewhere.visible, "neither paths nor the hub are offered"
    events = base_chooser.ChooserEvents(shared)
    request = Visitor()
    for refused in (
        lambda: events.use_path(str(base_folder), "float32", request),
        lambda: events.use("float32", gr.EventData(None, {"base": str(base_folder)}), request),
        lambda: events.use("float32", gr.EventData(None, {"base": "owner/name"}), request),
        lambda: events.look_up("owner/name", "float32", request),
        lambda: events.download(request),
    ):
        with pytest.raises(gr.Error, match="Others can reach this page"):
            refused()
    assert shared.session.base == "toybox"


def test_offline_the_chooser_says_what_to_put_where(toybox):
    visible, _, advice = base_chooser.ChooserEvents(toybox).open()  # the tests run with HF_HUB_OFFLINE
    assert visible["visible"] and "offline" in advice
    for needed in ("model_index.json", "vocab.json and merges.txt", "models--stable-diffusion-v1-5", ".safetensors"):
        assert needed in advice
    answer = base_chooser.ChooserEvents(toybox).look_up("owner/name", "float32", gr.Request(session_hash="a"))
    assert "can&#39;t be reached" in answer and "model_index.json" in answer


def test_licence_and_size_are_shown_before_a_download():
    base = hub.HubBase("owner/<name>", "openrail++", True, {"unet/model.safetensors": 3_400_000_000})
    shown = base_view.show_found(base)
    assert "openrail++" in shown and "3.4 GB" in shown and "owner/&lt;name&gt;" in shown
    assert "Accept its licence" in shown


@pytest.mark.parametrize(
    ("state", "text"),
    [("running", "1.0 GB of 4.0 GB"), ("finished", 'data-do="use"'), ("stopped", "keeps the files that are complete"),
     ("failed", "interrupted")],
)  # fmt: skip
def test_a_download_shows_how_far_it_is(state, text):
    base = hub.HubBase("owner/name", "openrail", False, {"a": 4_000_000_000})
    shown = base_download.show_download(base_download.Download(base, 1_000_000_000, state, "it was interrupted"))
    assert text in shown
    assert ('aria-valuenow="25"' in shown) == (state == "running")


def test_a_base_is_downloaded_from_the_hub_and_used(base_folder, own_photos, tmp_path):
    """In the browser, on a page of its own process: own photos, notice, hub, progress, switch."""
    published = shutil.copytree(base_folder, tmp_path / "published")
    with fake_hub("tester/tiny-sd", published, delay=0.05) as endpoint:
        choose_from_hub(tmp_path / "outputs", online(endpoint, tmp_path / "home"), own_photos, "tester/tiny-sd")
