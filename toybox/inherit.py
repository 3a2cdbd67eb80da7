"""Inheritance: a new toybox starts from the weights of an older one, as far as the two have the same parts.

A world that grows need not be learned from nothing: what is drawn, and how words are told apart, mostly stays.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

NEW_ATTENTION = 0.4
"""How loud attention speaks where the older model had none: at zero it hardly ever opens, at one it shouts."""


@torch.no_grad()
def inherit_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, model: Path) -> None:
    """Give `clip` the weights of the CLIP pair beside the pipeline folder `model`; both towers have the same shape.

    A token that the older vocabulary lacks starts as the mean of the pieces it is there.
    """
    folder = model.with_name(f"{model.name}-clip")
    older, its_tokens = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    state = older.state_dict()
    name = "text_model.embeddings.token_embedding.weight"
    state[name] = translate(state[name].float(), its_tokens, tokenizer)
    clip.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})


def translate(embeddings: Tensor, older: CLIPTokenizer, newer: CLIPTokenizer) -> Tensor:
    """Token embeddings (vocabulary, width) of one tokenizer laid out for another."""
    known = older.get_vocab()
    rows = torch.empty(len(newer), embeddings.shape[1])
    for token, number in newer.get_vocab().items():
        pieces = [known[token]] if token in known else older(token.removesuffix("</w>")).input_ids[1:-1]
        rows[number] = embeddings[pieces].mean(0)
    return rows


@torch.no_grad()
def inherit_unet(unet: UNet2DConditionModel, model: Path) -> None:
    """Give `unet` the weights of the UNet in the pipeline folder `model`; blocks of attention it lacks start quiet.

    Raises ValueError when the older UNet has a part that this one lacks, or of another shape.
    """
    older = UNet2DConditionModel.from_pretrained(model / "unet").float().state_dict()
    missing, unknown = unet.load_state_dict(older, strict=False)
    if unknown:
        raise ValueError(f"{model} has parts that the new UNet lacks: {', '.join(unknown[:3])}, …")
    for name, module in unet.named_modules():
        if name.endswith(".proj_out") and f"{name}.weight" in missing and isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.mul_(NEW_ATTENTION)
