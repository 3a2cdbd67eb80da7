"""The truth table: every row that can be run here is run, with that program's own loader; the README has the table."""

import pytest
import torch
from conftest import ROOT, everything, relative
from diffusers import DDIMScheduler
from loaders import EXACT, LOADERS, adapted, with_from_single_file

from hra_diffusion import interop, noise, registry
from hra_diffusion.interop import truth
from hra_diffusion.interop.truth import BY_FORMAT, BY_SOURCE, EXACTLY, TABLE, WRONGLY

METHODS = {"LoRA": "hoft", "DoRA": "shoft", "HRA": "hra", "folder": "hoft", "single file": "hoft"}
RUN = [row for row in TABLE if row.loads in (EXACTLY, WRONGLY)]


@pytest.mark.parametrize("row", RUN, ids=lambda row: f"{row.format}-{row.form}-{row.program}".replace(" ", "-"))
def test_a_row_is_what_its_loader_says(row, tmp_path):
    pipe, ours = adapted("sd", METHODS[row.form])
    file = row.format in ("kohya", "diffusers") or row.form == "single file"
    done = interop.export(pipe, "Rex", row.format, tmp_path / ("rex.safetensors" if file else "rex"))
    assert row in truth.rows(done)
    error = relative(everything(LOADERS[row.format, row.program, row.form]("sd", done.path)), ours)
    assert (error < EXACT) == (row.loads == EXACTLY)


def test_rows_that_are_not_run_say_so():
    assert {row.loads for row in TABLE if row not in RUN} == {BY_FORMAT, BY_SOURCE}


def test_every_export_has_rows(tmp_path):
    pipe, _ = adapted("sd", "lora")
    for format in interop.FORMATS:
        assert truth.rows(interop.export(pipe, "Rex", format, tmp_path / format))


@pytest.mark.parametrize("method", registry.names())
def test_what_is_foreseen_of_a_method_is_what_its_export_says(method, tmp_path):
    pipe, _ = adapted("sd", method)
    places = {format: tmp_path / format for format in interop.FORMATS} | {"single file": tmp_path / "one.safetensors"}
    done = [interop.export(pipe, "Rex", format.replace("single file", "merged"), at) for format, at in places.items()]
    assert sorted((row for one in done for row in truth.rows(one)), key=TABLE.index) == truth.foreseen(method)


NEEDS = {
    ("sd", "epsilon", False): "",
    ("sd", "v_prediction", False): "diffusers InvokeAI ComfyUI AUTOMATIC1111 Forge sd-scripts",
    ("sd", "v_prediction", True): "diffusers InvokeAI ComfyUI AUTOMATIC1111 Forge sd-scripts",
    ("sd2", "epsilon", False): "diffusers InvokeAI",
    ("sd2", "v_prediction", False): "sd-scripts",
    ("sd2", "v_prediction", True): "diffusers InvokeAI ComfyUI AUTOMATIC1111 sd-scripts",
    ("sdxl", "epsilon", False): "",
    ("sdxl", "v_prediction", False): "diffusers InvokeAI AUTOMATIC1111 sd-scripts",
    ("sdxl", "v_prediction", True): "diffusers InvokeAI AUTOMATIC1111 sd-scripts",
}
"""Programs in which a person must set something, for a merged single file of each noise process."""


@pytest.mark.parametrize("case", NEEDS, ids=str)
def test_what_must_be_set_for_a_noise_process_is_said(case, tmp_path):
    """In diffusers, beside the released base's configuration, the line that is printed gives our noise process."""
    kind, *process = case
    pipe, _ = adapted(kind, "lora")
    pipe.scheduler = noise.overridden(pipe.scheduler, *process)
    done = interop.export(pipe, "Rex", "merged", tmp_path / "rex.safetensors")
    needs = truth.noise_settings(done)
    assert list(needs) == NEEDS[case].split()
    assert all(f"{program}, for the noise process: {what}" in truth.lines(done) for program, what in needs.items())
    loaded = with_from_single_file(kind, done.path)
    if "diffusers" in needs:
        exec(needs["diffusers"], {"pipe": loaded, "DDIMScheduler": DDIMScheduler})
    theirs, ours = loaded.scheduler, noise.of(pipe.scheduler)
    assert theirs.config.prediction_type == ours.prediction_type
    torch.testing.assert_close(theirs.alphas_cumprod, ours.alphas_cumprod, atol=1e-6, rtol=1e-6)


def test_the_readme_has_the_table():
    assert truth.markdown() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_cut_lora_is_never_called_exact(tmp_path):
    done = interop.export(adapted("sd", "shoft")[0], "Rex", "kohya", tmp_path / "rex.safetensors", lora_rank=2)
    said = {row.program: truth.verdict(done, row) for row in truth.rows(done)}
    assert said["diffusers"] == f"approximately, error {done.error:.1%}" and done.error > 0.1
