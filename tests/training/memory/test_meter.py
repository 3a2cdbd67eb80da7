"""The meter of allocated memory."""

import functools

import pytest
import torch
from conftest import tiny_pipe, tiny_xl_pipe
from torch import nn

from training.memory import footprint, meter


@pytest.mark.parametrize(("make", "method"), [(tiny_pipe, "lora"), (tiny_xl_pipe, "hra")])
def test_shapes_that_are_computed_once_give_the_same_peaks(settings, make, method, monkeypatch):
    predict = functools.partial(footprint.predict_footprint, settings(method=method), "cpu", make())
    monkeypatch.setattr(meter, "_results", {})
    first, again = predict(), predict()
    assert meter._results, "shapes are kept"
    monkeypatch.setattr(meter, "_call", lambda function, args, kwargs: function(*args, **kwargs))
    assert first == again == predict()


def test_results_that_share_memory_with_an_argument_are_counted_once():
    """The signature of ``_unsafe_view`` does not say that it returns a view."""

    def peak():
        values = []
        model = nn.Linear(4, 4, device="meta")
        return meter.peak_bytes(lambda: values.append(torch.ops.aten._unsafe_view(torch.empty(8) + 1, [2, 4])), [model])

    assert peak() == peak() == 64
