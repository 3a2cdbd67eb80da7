"""Versions of base models by folder and hub id."""

import pytest
from conftest import tiny_xl_pipe

from hra_diffusion.models import sources
from training import config as configs


@pytest.mark.parametrize(
    ("name", "kind"), [("a/sd-xl-base", "sdxl"), ("a/stable-diffusion-2-1", "sd2"), ("a/b", "sd1")]
)
def test_version_of_an_uncached_hub_id(name, kind):
    assert sources.base_version(name) == kind and sources.base_version("toybox") == "toybox"


def test_version_of_a_folder(tmp_path):
    tiny_xl_pipe().save_pretrained(tmp_path / "xl")
    assert sources.base_version(str(tmp_path / "xl")) == "sdxl"
    config = configs.parse({"name": "a", "photos": ["b"], "class_noun": "dog", "base": str(tmp_path / "xl")})
    assert config.gradient_checkpointing and config.options["rank"] == 8
    (tmp_path / "xl" / "unet" / "config.json").write_text('{"cross_attention_dim": 1024}')
    assert sources.base_version(str(tmp_path / "xl")) == "sd2"
    (tmp_path / "xl" / "unet" / "config.json").write_text("[")
    assert sources.base_version(str(tmp_path / "xl")) == "sd1"
