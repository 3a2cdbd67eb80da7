"""Trained embeddings in other programs' files; diffusers is the oracle."""

import pytest
import torch
from conftest import stir, tiny_pipe, tiny_xl_pipe
from safetensors.torch import load_file, save_file

import hra_diffusion as hra
from hra_diffusion import interop, pipeline
from hra_diffusion.adapters import adapter_file, attachment
from hra_diffusion.adapters.token_embeddings import vectors_of
from hra_diffusion.interop import compatibility
from hra_diffusion.interop.adapter_source import AdapterImportError
from hra_diffusion.interop.export_job import ExportError
from hra_diffusion.models import families

PIPES = {"SD": tiny_pipe, "SDXL": tiny_xl_pipe}


def trained(make=tiny_pipe, triggers=("sks",)):
    """A pipeline with a LoRA and trained embeddings of the triggers."""
    pipe = make()
    attachment.attach(pipe.unet, "lora", {"rank": 2}, name="Rex")
    stir(attachment.adapter_parameters(pipe.unet, "Rex").values(), by=1.0)
    for number, (name, tokenizer) in enumerate(families.of(pipe).encoders):
        tokens = {trigger: families.token_ids(getattr(pipe, tokenizer), trigger) for trigger in triggers}
        size = getattr(pipe, name).get_input_embeddings().embedding_dim
        generator = torch.Generator().manual_seed(number)
        vectors = torch.randn(sum(map(len, tokens.values())), size, generator=generator)
        attachment.attach_vectors(getattr(pipe, name), "Rex", tokens, vectors)
    return pipe


def encoded(pipe, prompt):
    """The text encoder's output for a prompt."""
    tokens = pipe.tokenizer(pipe.maybe_convert_prompt(prompt, pipe.tokenizer), padding="max_length",
                            max_length=pipe.tokenizer.model_max_length, return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        return pipe.text_encoder(tokens.input_ids)[0]


def test_diffusers_reads_the_embedding_as_it_was_trained(tmp_path):
    pipe, other = trained(), tiny_pipe()
    done = interop.export(pipe, "Rex", "diffusers", tmp_path / "rex.safetensors")
    assert [file.name for file in done.embeddings] == ["rex-sks.safetensors"]
    other.load_textual_inversion(str(done.embeddings[0]), token="rex-sks")
    expected, read = encoded(pipe, "a sks dog"), encoded(other, "a rex-sks dog")
    words = len(pipe.tokenizer("a sks dog").input_ids)
    assert torch.allclose(read[:, :words], expected[:, :words], atol=1e-5)


@pytest.mark.parametrize("family", PIPES)
@pytest.mark.parametrize("bundled", [False, True])
def test_an_export_is_imported_with_its_trigger(family, bundled, tmp_path):
    pipe, other = trained(PIPES[family], ("sks", "red zwx")), PIPES[family]()
    done = interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors", bundle_embeddings=bundled)
    assert bool(done.embeddings) != bundled
    file, _ = interop.import_adapter(other, done.path, tmp_path, "New", embeddings=done.embeddings)
    info = hra.load(other, file)
    assert info.trigger == "sks" and list(info.embeddings["text_encoder"]) == ["sks", "red zwx"]
    for component in info.embeddings:
        own, read = (vectors_of(getattr(p, component), name) for p, name in ((pipe, "Rex"), (other, "New")))
        assert torch.equal(own.vectors, read.vectors) and own.tokens == read.tokens


def test_vectors_of_an_unknown_word_get_a_trigger_of_their_own(tmp_path):
    pipe = trained()
    done = interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    size = pipe.text_encoder.get_input_embeddings().embedding_dim
    count = 2 * len(families.token_ids(pipe.tokenizer, "sks"))
    save_file({"my word": torch.ones(count, size)}, tmp_path / "my-word.safetensors")
    file, _ = interop.import_adapter(
        tiny_pipe(), done.path, tmp_path, "New", embeddings=[tmp_path / "my-word.safetensors"]
    )
    assert adapter_file.read_info(file).trigger == "sks sks"


def test_the_strength_is_built_into_the_embedding(tmp_path):
    pipe = trained()
    halved = interop.export(pipe, "Rex", "kohya", tmp_path / "half.safetensors", strength=0.5).embeddings[0]
    vectors = vectors_of(pipe.text_encoder, "Rex")
    own = pipe.text_encoder.get_input_embeddings().weight[vectors.tokens["sks"]]
    assert torch.allclose(load_file(halved)["emb_params"], (own + vectors.vectors) / 2, atol=1e-6)


def test_notes_say_what_to_write_in_prompts(tmp_path):
    pipe = trained()
    done = interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    (note,) = [line for line in compatibility.notes(pipe, "Rex", done) if "embedding" in line]
    assert "rex-sks.safetensors" in note and "write “rex-sks” in place of “sks”" in note


def test_a_bundle_is_for_the_programs_that_read_it(tmp_path):
    done = interop.export(trained(), "Rex", "kohya", tmp_path / "rex.safetensors", bundle_embeddings=True)
    assert {row.program for row in compatibility.rows(done)} == {"AUTOMATIC1111", "Forge"}
    with pytest.raises(ValueError, match=r"bundle_emb|Invalid LoRA checkpoint"):  # what diffusers finds first
        tiny_pipe().load_lora_weights(str(done.path))


def test_embeddings_that_do_not_fit_are_refused(tmp_path):
    pipe = trained()
    done = interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    for name, tensors in {"wide": {"emb_params": torch.ones(1, 7)}, "sdxl": {"clip_l": torch.ones(1, 32), "clip_g":
                          torch.ones(1, 32)}, "none": {"emb_params": torch.ones(0, 32)}}.items():  # fmt: skip
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(AdapterImportError):
            interop.parse_adapter(tiny_pipe(), done.path, [tmp_path / f"{name}.safetensors"])
    with pytest.raises(ExportError, match="bundle-embeddings"):
        interop.export(pipe, "Rex", "peft", tmp_path / "peft", bundle_embeddings=True)


@pytest.mark.parametrize(("format", "output"), [("kohya", "other.safetensors"), ("diffusers", ".")])
def test_an_export_whose_embedding_exists_writes_nothing(format, output, tmp_path):
    (tmp_path / "rex-sks.safetensors").touch()
    with pytest.raises(ExportError, match=r"rex-sks.safetensors exists already"):
        interop.export(trained(), "Rex", format, tmp_path / output)
    assert [file.name for file in tmp_path.iterdir()] == ["rex-sks.safetensors"]


def test_an_embedding_does_not_replace_its_adapter(tmp_path):
    with pytest.raises(ExportError, match="is the file of the trained embedding"):
        interop.export(trained(), "Rex", "kohya", tmp_path / "rex-sks.safetensors")


def test_an_adapter_without_embeddings_has_no_such_files(tmp_path):
    pipe = tiny_pipe()
    attachment.attach(pipe.unet, "lora", {"rank": 2}, name="Rex")
    assert interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors").embeddings == ()
    assert pipeline.loaded(pipe) == ["Rex"]
