"""The wheel holds what an installed copy needs, and only that."""

import contextlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import hra_diffusion as hra


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that a wheel of this checkout unpacks to."""
    build = pytest.importorskip("hatchling.build", reason="needs hatchling (make setup)")
    folder = tmp_path_factory.mktemp("wheel")
    with contextlib.chdir(ROOT):
        wheel = folder / build.build_wheel(str(folder))
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def files(folder: Path, *patterns: str) -> set[str]:
    return {str(path.relative_to(folder)) for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}


def test_only_the_three_packages_are_installed(installed):
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {
        "app",
        "hra_diffusion",
        "training",
    }


def test_no_file_of_a_package_is_missing(installed):
    for package in ("app", "hra_diffusion", "training"):
        kept = {name for name in files(ROOT / package, "*") if "__pycache__" not in name}
        assert kept <= files(installed / package, "*")
    assert (installed / "hra_diffusion" / "__init__.pyi").is_file() and files(installed / "app", "*.html", "*.svg")


def test_the_assets_are_inside_the_package(installed):
    for name in ("toybox", "toybox-clip", "toybox-benchmark", "subjects", "samples"):
        assert files(ROOT / "assets" / name, "*") == files(installed / "hra_diffusion" / "assets" / name, "*")


def test_the_installed_copy_finds_its_assets_and_starts(installed):
    code = (
        "from hra_diffusion.models.sources import ASSETS; print(ASSETS); from app.cli import main; main(['--version'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=installed, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert run.stdout.split() == [str(installed / "hra_diffusion" / "assets"), hra.__version__], run


def test_every_public_name_is_listed_and_can_be_imported():
    assert {"load_base", "load", "generate", "compare", "Settings"} <= set(dir(hra)) == set(hra.__all__)
    assert all(hasattr(hra, name) for name in hra.__all__)
