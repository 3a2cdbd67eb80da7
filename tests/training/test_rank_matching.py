"""Parameter counts against real adapters, and the ranks matched by them."""

from collections import Counter

import pytest
from conftest import tiny_pipe, tiny_xl_pipe

from hra_diffusion.adapters import registry
from training.rank_matching import count_parameters, layer_shapes, matched_rank
from training.session.model import add_adapter


@pytest.mark.parametrize("method", registry.method_names())
@pytest.mark.parametrize("make", [tiny_pipe, tiny_xl_pipe])
@pytest.mark.parametrize("texts", [False, True])
def test_the_count_equals_the_parameters_of_a_real_adapter(settings, method, make, texts):
    pipe, config = make(), settings(method=method, train_text_encoder=texts)
    count = count_parameters(method, config.options, layer_shapes(pipe, config))
    assert count == sum(parameter.numel() for parameter in add_adapter(config, pipe).values())


@pytest.mark.parametrize("method", registry.method_names())
def test_the_matched_rank_is_the_closest(method):
    shapes = Counter({(64, 64): 6, (64, 48): 2})
    wanted = count_parameters("lora", {"rank": 8}, shapes)
    rank = matched_rank(method, {}, shapes, wanted)
    found = count_parameters(method, {"rank": rank}, shapes)
    others = [
        count_parameters(method, {"rank": r}, shapes) for r in range(max(1, rank - 4), rank + 5) if allowed(method, r)
    ]
    assert abs(found - wanted) == min(abs(other - wanted) for other in others)
    assert abs(found - wanted) < 0.2 * wanted


def allowed(method, rank):
    try:
        registry.get_method(method).parse({"rank": rank})
    except ValueError:
        return False
    return True
