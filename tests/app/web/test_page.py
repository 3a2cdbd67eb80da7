"""The whole page without a browser: colours, events, its API, several visitors."""

import re
import threading
import time

import httpx
import pytest
from gradio_client import Client
from serving import serving
from visitors import Visitor

from app.web import (
    html,
    theme,
)
from app.web.blocks import build


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("front", "back"),
    [
        ("button_primary_text_color", "button_primary_background_fill"),
        ("button_primary_text_color", "button_primary_background_fill_hover"),
        ("input_placeholder_color", "input_background_fill"),
        ("body_text_color_subdued", "body_background_fill"),
    ],
)
@pytest.mark.parametrize("dark", ["", "_dark"])
def test_text_has_enough_contrast(front, back, dark):
    """WCAG 2 contrast for text."""
    looks = theme.theme()

    def color(name):
        value = getattr(looks, name + dark, None) or getattr(looks, name)
        value = getattr(looks, value[1:]) if value.startswith("*") else value
        return {"white": "#ffffff"}.get(value, value)

    low, high = sorted(luminance(color(name)) for name in (front, back))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_bars_have_a_name_for_screen_readers():
    assert 'aria-label="Rex training"' in html.progress_bar(0.5, "Rex training")


def test_every_event_that_raises_user_errors_is_queued(context):
    """The browser shows no errors of events outside the queue."""
    events = [event for event in build(context).fns.values() if hasattr(event.fn, "__wrapped__")]
    quiet = {event.name for event in events if getattr(event.fn, "quiet", False)}
    assert len(events) > 20 and {event.name for event in events if event.queue is False} == quiet


def test_the_api_generates_and_compares(output, base_folder):
    with serving(output, base_folder) as page:
        client = Client(page.local_url, verbose=False)
        images, seed = client.predict(["Rex/Rex.safetensors"], "a dog", 1, 3, True, "", 2, None, "ddim", None, None,
                                     "compose", 1, 1, 1, 1, api_name="/generate")  # fmt: skip
        assert images.count("<img") == 1 and seed == 3 and "sks dog" in images
        status, grid, *_ = client.predict(
            ["Rex/Rex.safetensors"], True, "a {subject}", 0, 1, 1.0, 2, api_name="/compare"
        )
        assert "2 pictures" in status and grid.count("<img") >= 2
        names = set(client.view_api(return_format="dict", print_info=False)["named_endpoints"])
        assert names == {"/generate", "/compare", "/grid"}


def cookie_of(url):
    """The cookie of a new visitor, as a browser sends it back."""
    return httpx.get(url).headers["set-cookie"].split(";")[0]


def test_eight_visitors_see_only_their_own(output, base_folder):
    """They generate at the same time; none sees another's images or prompts, and none waits forever."""
    found = {}
    with serving(output, base_folder) as page:

        def visit(number):
            client = Client(page.local_url, verbose=False, headers={"cookie": cookie_of(page.local_url)})
            values = [[], f"prompt of visitor {number}", 1, number, True, "", 2, None, "ddim", None, None, "compose",
                      1, 1, 1, 1]  # fmt: skip
            images, _ = client.predict(*values, api_name="/generate")
            found[number] = set(re.findall(r"prompt of visitor (\d)", images))

        threads = [threading.Thread(target=visit, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 120
        for thread in threads:
            thread.join(max(0, end - time.monotonic()))
    assert found == {number: {str(number)} for number in range(8)}


def test_photos_belong_to_their_visitor(context):
    photos = sorted((context.output / "photos" / "Rex").glob("*.jpg"))
    context.draft(Visitor("a")).add(photos)
    assert len(context.draft(Visitor("a")).read().photos) == 3, "also after a reload or a restart: the cookie tells"
    assert context.draft(Visitor("b")).read().photos == ()
    ann = Visitor("a")
    ann.username = "ann"
    impostor = Visitor("login ann")
    assert len({context.visitor_folder(who) for who in (Visitor("a"), ann, impostor)}) == 3
    assert "a" not in {path.name for path in (context.output / "visitors").iterdir()}, (
        "the folder does not tell the cookie"
    )
