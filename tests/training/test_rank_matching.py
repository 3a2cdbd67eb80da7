"""Parameter counts against real adapters, and the ranks matched by them."""

from collections import Counter

import pytest
from conftest import tiny_pipe, tiny_xl_pipe
from safetensors.torch import load_file

import hra_diffusion
from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_file, registry
from training.errors import TrainingError
from training.loop import train
from training.rank_matching import count_parameters, layer_shapes, matched_rank
from training.session.model import add_adapter, check_adapter


@pytest.mark.parametrize("method", registry.method_names())
@pytest.mark.parametrize("make", [tiny_pipe, tiny_xl_pipe])
@pytest.mark.parametrize("texts", [False, True])
def test_the_count_equals_the_parameters_of_a_real_adapter(settings, method, make, texts):
    pipe, config = make(), settings(method=method, train_text_encoder=texts, options={"rank": 4})
    count = count_parameters(method, config.options, layer_shapes(pipe, config))
    assert count == sum(parameter.numel() for parameter in add_adapter(config, pipe).values())


@pytest.mark.parametrize("method", registry.method_names())
def test_the_matched_rank_is_the_closest(method):
    shapes = Counter({(64, 64, None): 6, (64, 48, None): 2})
    wanted = count_parameters("lora", {"rank": 8}, shapes)
    rank = matched_rank(method, {}, shapes, wanted)
    found = count_parameters(method, {"rank": rank}, shapes)
    nearby = range(max(1, rank - 4), rank + 5)
    others = [count_parameters(method, {"rank": r}, shapes) for r in nearby if allowed(method, r, shapes)]
    assert abs(found - wanted) == min(abs(other - wanted) for other in others)
    assert abs(found - wanted) < 0.2 * wanted or method in ("oft", "boft"), "few sizes of blocks divide the inputs"


def allowed(method, rank, shapes):
    try:
        config = registry.get_method(method).parse({"rank": rank})
    except ValueError:
        return False
    return not any(config.misfit(d_in, d_out) for d_out, d_in, _ in shapes)


def test_ranks_and_excluded_layers_by_pattern(settings, tmp_path):
    """The first matching pattern gives the rank. The finished adapter stores the ranks."""
    ranks = {r".*attn2\.to_k": 2, r".*attn2\..*": 6}
    config = settings(
        method="lora", options={"rank": 4}, ranks=ranks, exclude=r".*(to_v|v_proj)", sample_prompts=[], steps=1,
        prior_loss_weight=0,
    )  # fmt: skip
    count = count_parameters("lora", config.options, layer_shapes(tiny_pipe(), config))
    trained = load_file(train(config, tmp_path))
    assert count == sum(value.numel() for value in trained.values())
    found = {key.removesuffix(".up"): value.shape[1] for key, value in trained.items() if key.endswith(".up")}
    assert not any("to_v" in key or "v_proj" in key for key in found)
    assert {rank for key, rank in found.items() if key.endswith("attn2.to_k")} == {2}
    assert {rank for key, rank in found.items() if "attn2" in key and not key.endswith("to_k")} == {6}
    assert {rank for key, rank in found.items() if "attn2" not in key} == {4}, "text encoder and self-attention"
    pipe = tiny_pipe()
    hra_diffusion.load(pipe, tmp_path / "Rex" / "Rex.safetensors")
    assert {key: value.shape for key, value in adapter_file.parameters(pipeline.components(pipe), "Rex").items()} == {
        key: value.shape for key, value in trained.items()
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ranks": {"nowhere": 4}},
            "ranks: 'nowhere' matches no target; use a regular expression for paths like down_",
        ),
        ({"ranks": {"(": 4}}, r"ranks: '\(' is not a valid regular expression"),
        ({"ranks": {".*to_q": 3}}, "rank must be even"),
        ({"ranks": {".*to_q": 64}}, "rank 64 is too large for down_blocks"),
        ({"exclude": "nowhere"}, "exclude: 'nowhere' matches no target"),
        ({"exclude": ".*", "train_text_encoder": False}, r"exclude: '\.\*' matches every target of UNet2DCondition"),
    ],
)
def test_a_pattern_that_can_not_be_meant_is_named(settings, changes, message):
    with pytest.raises(TrainingError, match=message):
        check_adapter(settings(**changes), tiny_pipe())
