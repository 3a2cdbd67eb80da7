"""Tests of initialising new models with the weights of an older toybox."""

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from hra_diffusion.models.sources import ASSETS
from toybox.autoencoder import LATENT_CHANNELS
from toybox.base import new_unet
from toybox.base_training import BaseRecipe
from toybox.clip import new_clip
from toybox.tokenizer import tokenise, train_tokenizer
from toybox.warm_start import remap_embeddings, warm_start_clip, warm_start_unet

MODEL = ASSETS / "toybox"


def test_known_tokens_keep_their_embeddings_and_new_ones_get_the_mean_of_their_pieces():
    """Whatever their ids are in the new vocabulary."""
    older, newer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer"), train_tokenizer()
    embeddings = torch.randn(len(older), 4)
    rows = remap_embeddings(embeddings, older, newer)
    fox = "fox</w>"
    assert rows[newer.get_vocab()[fox]].equal(embeddings[older.get_vocab()[fox]])
    pieces = older("monocle").input_ids[1:-1]
    assert rows[newer.get_vocab()["monocle</w>"]].allclose(embeddings[pieces].mean(0))


def test_clip_text_features_equal_those_of_the_older_model():
    """Although token ids differ."""
    folder = MODEL.with_name("toybox-clip")
    older, older_tokenizer = CLIPModel.from_pretrained(folder).float().eval(), CLIPTokenizer.from_pretrained(folder)
    tokenizer = train_tokenizer()
    clip = new_clip(tokenizer).eval()
    warm_start_clip(clip, tokenizer, MODEL)
    captions = ["a photo of a fox in the snow", "a sks teapot on the beach"]
    with torch.no_grad():
        expected = older.get_text_features(tokenise(older_tokenizer, captions)).pooler_output
        found = clip.get_text_features(tokenise(tokenizer, captions)).pooler_output
    assert found.allclose(expected, atol=1e-4)


def test_unet_gets_all_weights_of_the_older_one():
    """A UNet with other shapes raises an error."""
    unet = new_unet(LATENT_CHANNELS, BaseRecipe().channels)
    warm_start_unet(unet, MODEL)
    older = type(unet).from_pretrained(MODEL / "unet").state_dict()
    new = unet.state_dict()
    assert all(new[name].equal(value.float()) for name, value in older.items())
    with pytest.raises(RuntimeError, match="size mismatch"):
        warm_start_unet(new_unet(LATENT_CHANNELS, (32, 32, 64)), MODEL)
