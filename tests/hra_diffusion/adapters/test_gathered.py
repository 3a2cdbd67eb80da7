"""Prepared adapters in one batch: every picture equals the one that the attached adapter draws alone."""

import numpy as np
import pytest
import torch
from conftest import PIPES, distance, stir, tiny_pipe
from flow_pipes import tiny_flux2_pipe

import hra_diffusion as hra
from hra_diffusion.adapters import attachment, registry
from hra_diffusion.adapters.adapter_file import AdapterFileError
from hra_diffusion.adapters.gathered import RANK_BUCKETS, prepare
from hra_diffusion.adapters.methods import COMPARED
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.pipeline import components

FEW = Settings(steps=3, guidance_scale=3.0)
EVERYTHING = r".*(to_[qkv]|to_out\.0|conv1|proj_in|time_emb_proj|q_proj|fc1)"


def save_adapter(pipe, path, method="lora", rank=4, seed=0, targets="attention", parts=("unet",), tokens=None):
    """An adapter with random values, saved and detached; the base does not change."""
    name = path.stem
    for part in parts:
        model = getattr(pipe, part)
        attachment.attach(model, method, {"rank": rank}, name=name, targets=targets, seed=seed)
        if tokens and part == "text_encoder":
            vectors = torch.randn(len(tokens), 32, generator=torch.Generator().manual_seed(seed))
            attachment.attach_vectors(model, name, {"x": tokens}, vectors)
        stir(attachment.adapter_parameters(model, name).values(), seed, by=3.0)
    hra.save(pipe, path, name, "sks", "dog")
    hra.detach(pipe, name)
    return path


def assert_equals_alone(pipe, paths, strengths, settings=FEW, prompts=("a dog", "a cat in the snow")):
    """Draw one picture per adapter and one of the base together, and each alone with its adapter attached."""
    prepared = {
        ((path.stem, strength),): prepare(path, components(pipe), strength)
        for path, strength in zip(paths, strengths, strict=True)
    }
    uses = [*prepared, ()]
    requests = [Request(prompts[i % len(prompts)], i, use) for i, use in enumerate(uses)]
    together = generate_batch(pipe, requests, settings, prepared=prepared)
    alone = []
    for path, request in zip([*paths, None], requests, strict=True):
        if path:
            hra.load(pipe, path)
        alone += generate_batch(pipe, [request], settings)
        hra.detach(pipe)
    for one, other in zip(together, alone, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1
    base = generate_batch(pipe, [Request(one.prompt, one.seed) for one in requests], settings)
    assert all(distance(one, other) > 1 for one, other in list(zip(together, base, strict=True))[:-1])


def test_every_method_in_one_batch_draws_what_it_draws_alone(tmp_path):
    """Linear layers and convolutions of the UNet and the text encoder, other ranks and strengths, all at once."""
    pipe = tiny_pipe()
    methods = [name for name in registry.method_names() if name not in ("oft", "boft")]
    paths = [
        save_adapter(pipe, tmp_path / f"{name}.safetensors", name, 2 + 2 * (i % 3), i, EVERYTHING,
                     ("unet", "text_encoder"))
        for i, name in enumerate(methods)
    ]  # fmt: skip
    assert_equals_alone(pipe, paths, [1.0, 0.6, 1.3, 0.5, 1.0, 0.7][: len(paths)])


def test_a_transformer_that_is_called_twice_for_guidance(tmp_path):
    """FLUX.2's pipeline does not join the two calls to one batch; two of its layers are projections for everything."""
    pipe = tiny_flux2_pipe()
    with torch.no_grad():  # random blocks of standard size have little effect
        for parameter in pipe.transformer.parameters():
            parameter.mul_(3)
    paths = [
        save_adapter(pipe, tmp_path / f"{method}.safetensors", method, parts=("transformer",)) for method in COMPARED
    ]
    assert_equals_alone(pipe, paths, [1.0, 0.6, 1.3, 0.5, 1.0][: len(paths)], Settings(steps=1, guidance_scale=3.0))


@pytest.mark.parametrize("method", ["oft", "boft"])
def test_blocks_share_a_batch_with_the_base(tmp_path, method):
    pipe = tiny_pipe()
    paths = [save_adapter(pipe, tmp_path / f"{i}.safetensors", method, 4, i) for i in range(2)]
    assert_equals_alone(pipe, paths, [1.0, 0.5])


def test_sdxl_and_one_adapter_for_all(tmp_path):
    pipe = PIPES["sdxl"]()
    paths = [save_adapter(pipe, tmp_path / f"{i}.safetensors", "hra", 4, i) for i in range(2)]
    assert_equals_alone(pipe, paths, [1.0, 0.5])
    key = (("0", 1.0),)
    prepared = {key: prepare(paths[0], components(pipe))}
    requests = [Request("a dog", seed, key) for seed in range(3)]
    together = generate_batch(pipe, requests, FEW, prepared=prepared)
    assert all(
        distance(image, generate_batch(pipe, [request], FEW, prepared=prepared)[0]) < 0.1
        for image, request in zip(together, requests, strict=True)
    )


def test_trained_words_and_weighted_prompts(tmp_path):
    """Each sample has its own vectors of the same token; prompts of several lengths and with weights."""
    pipe = tiny_pipe()
    tokens = pipe.tokenizer("d", add_special_tokens=False).input_ids
    parts = ("unet", "text_encoder")
    paths = [save_adapter(pipe, tmp_path / f"{i}.safetensors", seed=i, parts=parts, tokens=tokens) for i in range(3)]
    prompts = "a d", "a (d:1.5)", "d " * 30
    assert_equals_alone(pipe, paths, [1.0, 0.5, 1.0], Settings(steps=2, guidance_scale=1.0), prompts)


def test_a_prepared_adapter_is_as_large_as_its_factors_and_joins_those_of_its_bucket(tmp_path):
    pipe = tiny_pipe()
    path = save_adapter(pipe, tmp_path / "a.safetensors", rank=16)
    prepared = prepare(path, components(pipe))
    assert prepared.nbytes <= path.stat().st_size
    small = prepare(save_adapter(pipe, tmp_path / "b.safetensors", rank=2), components(pipe))
    assert prepared.kind == small.kind == (RANK_BUCKETS[0], frozenset())
    other = prepare(save_adapter(pipe, tmp_path / "c.safetensors", "oft", 4), components(pipe))
    assert other.kind != small.kind
    assert hra.loaded(pipe) == [], "nothing is attached"


def test_an_adapter_for_another_base_and_a_damaged_one_are_refused(tmp_path):
    path = save_adapter(tiny_pipe(cross_attention_dim=48), tmp_path / "other.safetensors")
    with pytest.raises(AdapterFileError, match="another base"):
        prepare(path, components(tiny_pipe()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterFileError, match="not a complete"):
        prepare(path, components(tiny_pipe()))
