"""The CLIP pair of the toy world: an image tower and a text tower trained by contrast (Radford et al. 2021).

The text tower is the base's text encoder and stands still while the UNet learns, as in Stable Diffusion: a tower that
already tells things apart saves the UNet most of the time it would need to find that out through noise. It is in-domain
and shared with the generator: scores made with the pair are proxies.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from toybox.autoencoder import to_signal
from toybox.captions import draw_caption
from toybox.inherit import inherit_clip
from toybox.loop import Budget, Progress, Training, autocast, load_checkpoint
from toybox.scenes import Rng
from toybox.shards import Shard
from toybox.tokenizer import MAX_LENGTH, tokenise
from toybox.world import PICTURE_SIZE

TEXT_WIDTH = 128


@dataclass(frozen=True)
class ClipRecipe:
    """How the pair is trained."""

    batch: int = 128
    scenes: int = 3
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


def group_by_scene(pictures: Shard) -> list[np.ndarray]:
    """The numbers of the pictures of each scene."""
    scenes = np.array([label.scene for label in pictures.labels])
    return [np.nonzero(scenes == scene)[0] for scene in np.unique(scenes)]


def draw_batch(by_scene: list[np.ndarray], recipe: ClipRecipe, rng: Rng) -> np.ndarray:
    """The numbers of a batch's pictures, from a few scenes only: then it is the things that tell pictures apart.

    In a batch from everywhere the scene alone gives most of the answer, and towers hardly learn things but by colour.
    """
    scenes = rng.choice(len(by_scene), recipe.scenes, replace=False)
    return rng.choice(np.concatenate([by_scene[scene] for scene in scenes]), recipe.batch)


def two_wordings(pictures: Shard, chosen: np.ndarray, rng: Rng) -> list[list[str]]:
    """Two captions for each chosen picture; an empty one belongs to every picture and teaches nothing here."""
    labels = [pictures.labels[number] for number in chosen.tolist()]
    return [[draw_caption(label, rng) or "a photo" for label in labels] for _ in range(2)]


def train_clip(
    pictures: Shard,
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    budget: Budget,
    device: torch.device,
    recipe: ClipRecipe,
    ancestor: Path | None = None,
) -> Progress:
    """Train on uint8 pictures and their labels, continuing from `checkpoint` if it exists.

    Otherwise it starts from the pair beside the pipeline folder `ancestor`, or from nothing.

    A picture is to be told by its caption, and a caption by another wording of itself (as in DeCLIP, Li et al. 2022):
    the text tower so learns what a caption is about before the image tower can see it.
    """
    torch.manual_seed(recipe.seed)
    clip = new_clip(tokenizer)
    if ancestor is not None:
        inherit_clip(clip, tokenizer, ancestor)
    clip.to(device)  # type: ignore[arg-type]
    by_scene = group_by_scene(pictures)

    def loss_of(step: int, spent: float) -> Tensor:
        rng = np.random.default_rng(recipe.seed + step)
        chosen = draw_batch(by_scene, recipe, rng)
        signal = to_signal(pictures.values[torch.from_numpy(chosen)]).to(device)
        wordings = [tokenise(tokenizer, captions).to(device) for captions in two_wordings(pictures, chosen, rng)]
        with autocast(device):
            found = clip(wordings[0], signal)  # type: ignore[call-arg]
            reworded = F.normalize(clip.text_projection(clip.text_model(wordings[1]).pooler_output), dim=-1)
            between_texts = clip.logit_scale.exp() * found.text_embeds @ reworded.T
        return contrast(found.logits_per_image.float()) + contrast(between_texts.float())

    training = Training("clip", {"clip": clip}, list(clip.parameters()), checkpoint, recipe.learning_rate, recipe.batch)
    return training.run(budget, loss_of)


def load_clip(checkpoint: Path, tokenizer: CLIPTokenizer) -> CLIPModel:
    """The pair of a checkpoint. Raises FileNotFoundError when there is none yet."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"no CLIP pair at {checkpoint}: run the `clip` stage first")
    clip = new_clip(tokenizer)
    load_checkpoint(checkpoint, {"clip": clip})
    return clip.eval().requires_grad_(False)


def save_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the pair in float16 with its processor, as any CLIP model is kept."""
    processor = CLIPImageProcessorPil(
        do_resize=True,
        size={"shortest_edge": PICTURE_SIZE},
        crop_size={"height": PICTURE_SIZE, "width": PICTURE_SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    deepcopy(clip).half().save_pretrained(folder)
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
