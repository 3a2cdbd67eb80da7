"""Tiny vision transformers that take images of the real models' size."""

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "layer_norm_eps": 1e-6}


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory):
    """A tiny DINO: a ViT without pooler, as facebook/dino-vits16."""
    folder = tmp_path_factory.mktemp("dino") / "dino-tiny"
    torch.manual_seed(0)
    config = ViTConfig(**SIZES, intermediate_size=32, image_size=224, patch_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory):
    """A tiny DINOv2, with position embeddings of larger images, as facebook/dinov2-base."""
    folder = tmp_path_factory.mktemp("dinov2") / "dinov2-tiny"
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2, image_size=294, patch_size=14)).save_pretrained(folder)
    return folder
