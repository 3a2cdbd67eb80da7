"""The CLIP pair of the toy world: an image tower and a text tower trained by contrast (Radford et al. 2021).

The text tower is the base's text encoder and stands still while the UNet learns, as in Stable Diffusion: a tower that
already tells things apart saves the UNet most of the time it would need to find that out through noise. It is in-domain
and shared with the generator: scores made with the pair are proxies.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from training.toybox.autoencoder import to_signal
from training.toybox.captions import draw_caption
from training.toybox.loop import Budget, Progress, Training, autocast, load_checkpoint
from training.toybox.shards import Shard
from training.toybox.tokenizer import MAX_LENGTH, tokenise
from training.toybox.world import PICTURE_SIZE

TEXT_WIDTH = 128


@dataclass(frozen=True)
class ClipRecipe:
    """How the pair is trained."""

    batch: int = 128
    learning_rate: float = 1e-3
    seed: int = 0


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """A text tower of three layers, wide TEXT_WIDTH, for the tokens of `tokenizer`."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,  # type: ignore[arg-type]
        eos_token_id=tokenizer.eos_token_id,  # type: ignore[arg-type]
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[arg-type]
    )


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained pair: the text tower, and four layers over 8×8 patches of 16 pixels."""
    vision = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=640,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=PICTURE_SIZE,
        patch_size=16,
    )
    return CLIPModel(CLIPConfig(text_config=text_config(tokenizer), vision_config=vision, projection_dim=TEXT_WIDTH))


def contrast(logits: Tensor) -> Tensor:
    """The symmetric cross entropy of matching pictures and captions; logits (N, N), row i belongs to column i."""
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train_clip(
    pictures: Shard,
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    budget: Budget,
    device: torch.device,
    recipe: ClipRecipe,
) -> Progress:
    """Train on uint8 pictures and their labels, continuing from `checkpoint` if it exists."""
    torch.manual_seed(recipe.seed)
    clip = new_clip(tokenizer).to(device)  # type: ignore[arg-type]

    def loss_of(step: int, spent: float) -> Tensor:
        rng = np.random.default_rng(recipe.seed + step)
        chosen = rng.integers(len(pictures.labels), size=recipe.batch)
        # an empty caption belongs to every picture and teaches nothing here
        captions = [draw_caption(*pictures.labels[i], rng) or "a photo" for i in chosen]
        signal = to_signal(pictures.values[torch.from_numpy(chosen)]).to(device)
        with autocast(device):
            found = clip(tokenise(tokenizer, captions).to(device), signal)  # type: ignore[call-arg]  # type: ignore[call-arg]
        return contrast(found.logits_per_image.float())

    training = Training("clip", {"clip": clip}, list(clip.parameters()), checkpoint, recipe.learning_rate, recipe.batch)
    return training.run(budget, loss_of)


def load_clip(checkpoint: Path, tokenizer: CLIPTokenizer) -> CLIPModel:
    """The pair of a checkpoint. Raises FileNotFoundError when there is none yet."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"no CLIP pair at {checkpoint}: run the `clip` stage first")
    clip = new_clip(tokenizer)
    load_checkpoint(checkpoint, {"clip": clip})
    return clip.eval().requires_grad_(False)
