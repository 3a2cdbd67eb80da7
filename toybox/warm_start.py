"""Initialise new models with the weights of an older toybox, so that an extended world isn't trained from scratch."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

NEW_ATTENTION_SCALE = 0.4
"""Scale of the output of attention blocks that the older model lacks: at 0 they hardly train, at 1 they dominate."""


@torch.no_grad()
def warm_start_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, model: Path) -> None:
    """Load the weights of the CLIP model beside the pipeline folder ``model``, which has the same architecture.

    The embedding of a token that the older vocabulary lacks is the mean of the embeddings of its pieces there.
    """
    folder = model.with_name(f"{model.name}-clip")
    older, older_tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    state = older.state_dict()
    name = "text_model.embeddings.token_embedding.weight"
    state[name] = remap_embeddings(state[name].float(), older_tokenizer, tokenizer)
    clip.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})


def remap_embeddings(embeddings: Tensor, older: CLIPTokenizer, newer: CLIPTokenizer) -> Tensor:
    """Rearrange token embeddings (vocabulary, width) of one tokenizer for another."""
    known = older.get_vocab()
    rows = torch.empty(len(newer), embeddings.shape[1])
    for token, number in newer.get_vocab().items():
        pieces = [known[token]] if token in known else older(token.removesuffix("</w>")).input_ids[1:-1]
        rows[number] = embeddings[pieces].mean(0)
    return rows


@torch.no_grad()
def warm_start_unet(unet: UNet2DConditionModel, model: Path) -> None:
    """Load the weights of the UNet in the pipeline folder ``model``; scale new attention by NEW_ATTENTION_SCALE.

    Raises ValueError if the older UNet has parameters that this one lacks.
    """
    older = UNet2DConditionModel.from_pretrained(model / "unet").float().state_dict()
    missing, unknown = unet.load_state_dict(older, strict=False)
    if unknown:
        raise ValueError(f"{model} has parameters that the new UNet lacks: {', '.join(unknown[:3])}, …")
    for name, module in unet.named_modules():
        if name.endswith(".proj_out") and f"{name}.weight" in missing and isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.mul_(NEW_ATTENTION_SCALE)
