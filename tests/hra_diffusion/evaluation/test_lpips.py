"""LPIPS of random classifiers, compared with the package lpips, which gets them from a stand-in for torchvision."""

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest
import torch
from conftest import random_images
from safetensors.torch import save_file
from torch import nn

from hra_diffusion.errors import UserError
from hra_diffusion.evaluation import measures
from hra_diffusion.evaluation.lpips import HUB_VGG, Lpips
from hra_diffusion.evaluation.preprocessing import to_pixels

needs_lpips = pytest.mark.skipif(importlib.util.find_spec("lpips") is None, reason="needs the package lpips")

CONVOLUTIONS = {
    "vgg": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "alex": "64/11/4/2 M 192/5/1/2 M 384 256 256 M",
}
"""``cfgs["D"]`` of torchvision/models/vgg.py; channels/kernel/stride/padding of torchvision/models/alexnet.py."""


def classifier(net):
    """torchvision's ``features`` with random weights."""
    torch.manual_seed(1)
    layers, last = [], 3
    for entry in CONVOLUTIONS[net].split():
        if entry == "M":
            layers.append(nn.MaxPool2d(2 if net == "vgg" else 3, 2))
            continue
        channels, kernel, stride, padding = (int(value) for value in (entry + "/3/1/1").split("/")[:4])
        layers += [nn.Conv2d(last, channels, kernel, stride, padding), nn.ReLU(inplace=True)]
        last = channels
    return nn.Sequential(*layers)


def saved(net, folder):
    """A classifier's file, with a head, as timm and torchvision name the weights."""
    weights = {f"features.{name}": value for name, value in classifier(net).state_dict().items()}
    path = folder / "model.safetensors"
    save_file(weights | {"head.fc.weight": torch.zeros(2, 2)}, path)
    return path


def reference(net):
    """The package's own model. It needs torchvision for the classifier, and imports a function of SciPy."""
    torchvision, ndimage = ModuleType("torchvision"), ModuleType("scipy.ndimage")
    torchvision.models = SimpleNamespace(
        **{name: lambda pretrained: SimpleNamespace(features=classifier(net)) for name in ("vgg16", "alexnet")}
    )
    ndimage.zoom = None
    stands = {"torchvision": torchvision, "scipy": ModuleType("scipy"), "scipy.ndimage": ndimage}
    with mock.patch.dict(sys.modules, stands):
        return importlib.import_module("lpips").LPIPS(net=net, verbose=False)


@needs_lpips
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_distances_equal_those_of_the_package(net, tmp_path):
    images = [image.resize((96, 80)) for image in random_images(3)]
    model = Lpips(saved(net, tmp_path), net)
    pixels = 2 * to_pixels(images) - 1
    with torch.no_grad():
        expected = reference(net)(pixels[:2], pixels[1:]).flatten().tolist()
    assert model.distances(images[:2], images[1:]) == pytest.approx(expected, rel=1e-4)
    matrix = model.pairwise(images)
    assert [matrix[0, 1], matrix[1, 2]] == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(matrix, matrix.T)
    assert matrix.diagonal().tolist() == [0, 0, 0]
    assert model.between(images[:1], images[1:]).tolist() == [pytest.approx(matrix[0, 1:].tolist())]
    assert measures.diversity(matrix) == pytest.approx((matrix.sum() / 6).item())


@needs_lpips
def test_weights_of_another_classifier_are_an_error(tmp_path):
    with pytest.raises(UserError, match=f"can't be used for LPIPS.*{HUB_VGG}"):
        Lpips(saved("alex", tmp_path), "vgg")


@needs_lpips
def test_missing_weights_are_an_error_that_says_where_they_are(tmp_path):
    with pytest.raises(UserError, match=r"can't be used for LPIPS.*model\.safetensors"):
        Lpips(tmp_path)
    with pytest.raises(UserError, match=HUB_VGG):
        Lpips()  # without a connection
    with pytest.raises(UserError, match="alexnet-owt-7be5be79"):
        Lpips(net="alex")


def test_without_the_package_an_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'hra-diffusion\[eval\]'"):
        Lpips()
