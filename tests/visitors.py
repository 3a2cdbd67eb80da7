"""Visitors of the page, and what they enter on its tabs."""

import threading
from types import SimpleNamespace

from app.web.compare_plan import Plan, make_plan
from app.web.events import SENDER
from app.web.generate_request import GenerationRequest, generate_images

ADAPTER = "Rex/Rex.safetensors"


class Visitor:
    """A request with a cookie, as gr.Request has it."""

    username = None

    def __init__(self, cookie="a"):
        self.cookies, self.session_hash = {"hra_visitor": cookie}, cookie
        self.request = SimpleNamespace(scope={SENDER: f"cookie {cookie}"})


def generation_request(**changes) -> GenerationRequest:
    """Values of the Generate tab."""
    values = {"adapters": [ADAPTER], "prompt": "a dog in the snow", "count": 2, "seed": 5, "lock": True,
              "negative": "", "steps": 3, "guidance": None, "scheduler": "ddim", "width": None, "height": None,
              "fusion": "compose", "strengths": [1.0]}  # fmt: skip
    return GenerationRequest(**(values | changes))


def generated(context, **changes):
    """Images generated with values of the Generate tab."""
    images, _ = list(generate_images(context, generation_request(**changes), threading.Event()))[-1]
    return list(images.values())


def comparison_plan(context, **changes) -> Plan:
    """Values of the Compare tab as a plan."""
    values = {"adapters": [ADAPTER], "base": True, "prompts": "a {subject}", "seed": 1, "seeds": 2, "strength": 1.0,
              "steps": 2, "drift": False}  # fmt: skip
    return make_plan(context, list((values | changes).values()))
