"""Inheritance: a new toybox knows from the start what the older one knew."""

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from hra_diffusion.models.sources import ASSETS
from toybox.autoencoder import LATENT_CHANNELS
from toybox.base import BaseRecipe, new_unet
from toybox.clip import new_clip
from toybox.inherit import inherit_clip, inherit_unet, translate_embeddings
from toybox.tokenizer import tokenise, train_tokenizer

MODEL = ASSETS / "toybox"


def test_known_tokens_keep_their_embeddings_and_new_ones_are_the_mean_of_their_pieces():
    """Whatever their numbers are now."""
    older, newer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer"), train_tokenizer()
    embeddings = torch.randn(len(older), 4)
    rows = translate_embeddings(embeddings, older, newer)
    fox = "fox</w>"
    assert rows[newer.get_vocab()[fox]].equal(embeddings[older.get_vocab()[fox]])
    pieces = older("monocle").input_ids[1:-1]
    assert rows[newer.get_vocab()["monocle</w>"]].allclose(embeddings[pieces].mean(0))


def test_the_pair_understands_captions_as_the_older_one_did():
    """The same features, from tokens of other numbers."""
    folder = MODEL.with_name("toybox-clip")
    older, its_tokens = CLIPModel.from_pretrained(folder).float().eval(), CLIPTokenizer.from_pretrained(folder)
    tokenizer = train_tokenizer()
    clip = new_clip(tokenizer).eval()
    inherit_clip(clip, tokenizer, MODEL)
    captions = ["a photo of a fox in the snow", "a sks teapot on the beach"]
    with torch.no_grad():
        expected = older.get_text_features(tokenise(its_tokens, captions)).pooler_output
        found = clip.get_text_features(tokenise(tokenizer, captions)).pooler_output
    assert found.allclose(expected, atol=1e-4)


def test_the_unet_takes_every_part_there_is():
    """Into the same places; one of another shape is refused."""
    unet = new_unet(LATENT_CHANNELS, BaseRecipe().channels)
    inherit_unet(unet, MODEL)
    older = type(unet).from_pretrained(MODEL / "unet").state_dict()
    assert all(unet.state_dict()[name].equal(value.float()) for name, value in older.items())
    with pytest.raises(RuntimeError, match="size mismatch"):
        inherit_unet(new_unet(LATENT_CHANNELS, (32, 32, 64)), MODEL)
