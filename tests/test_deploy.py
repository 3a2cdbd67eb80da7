"""The files of deploy/: their commands exist, the image has what they need, and they find what the docs store."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from app.cli import load_command
from hra_diffusion import yaml_text

CONTAINER, COMPOSE, UNIT = (
    (ROOT / "deploy" / name).read_text() for name in ("Containerfile", "compose.yaml", "hra-diffusion.service")
)
SERVICES = yaml_text.parse(COMPOSE)["services"]
BY_DEFAULT = json.loads(re.search(r"^CMD (\[.*\])$", CONTAINER, re.M)[1])
COMMANDS = [service.get("command", BY_DEFAULT) for service in SERVICES.values()]
OF_UNIT = shlex.split(re.search(r"^ExecStart=\S+ (.*)$", UNIT, re.M)[1])


@pytest.mark.parametrize("words", [*COMMANDS, OF_UNIT], ids=" ".join)
def test_commands_exist_and_the_image_has_what_they_need(words):
    command, parser = load_command(words[0])
    assert parser.parse_args(words[1:])
    needed = re.findall(r"hra-diffusion\[([\w-]+)\]", Path(command.__file__).read_text())
    assert set(needed) <= set(re.search(r'^ARG EXTRAS="(.*)"$', CONTAINER, re.M)[1].split(","))


def test_the_services_find_the_logins_and_keys_that_the_docs_create():
    calls = re.findall(r"^docker run (.*)", (ROOT / "docs" / "deployment.md").read_text(), re.M)
    volume = yaml_text.parse(COMPOSE)["volumes"]["data"]["name"]
    assert all(f"-v {volume}:/data " in call for call in calls)
    assert all(service["volumes"] == ["data:/data"] for service in SERVICES.values())
    for words in COMMANDS:
        (file,) = [" ".join(words[i : i + 2]) for i, word in enumerate(words) if word in ("--auth-file", "--keys")]
        assert any(f"hra-diffusion {words[0]} {file} --add-" in call for call in calls), file


def test_the_proxys_word_for_scheme_and_addresses_is_taken():
    assert all(service["environment"]["FORWARDED_ALLOW_IPS"] == "*" for service in SERVICES.values())
