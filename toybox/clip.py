"""The CLIP model of the toy world: image and text encoder, trained contrastively (Radford et al. 2021).

The base model uses the text encoder, frozen as in Stable Diffusion: the UNet trains much faster with text embeddings
that already distinguish objects. The CLIP model is in-domain and shares its text encoder with the generator, so its
scores are proxies.
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

from hra_diffusion.evaluation.judge import normalize
from toybox.captions import sample_caption
from toybox.checkpoints import Progress, load_checkpoint
from toybox.drawing import Rng
from toybox.loop import Budget, Training, autocast
from toybox.rendering import IMAGE_SIZE
from toybox.shards import Shard
from toybox.tokenizer import MAX_LENGTH, tokenise
from toybox.warm_start import warm_start_clip

TEXT_WIDTH = 128


@dataclass(frozen=True)
class ClipRecipe:
    """Hyperparameters of the CLIP model's training."""

    batch: int = 128
    scenes_per_batch: int = 3
    learning_rate: float = 1e-3
    seed: int = 0


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Configure a text encoder with three layers of width TEXT_WIDTH for a tokenizer."""
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
    """Create an untrained CLIP model; its image encoder has four layers over 8×8 patches of 16 pixels."""
    vision = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=640,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=16,
    )
    return CLIPModel(CLIPConfig(text_config=text_config(tokenizer), vision_config=vision, projection_dim=TEXT_WIDTH))


def contrastive_loss(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy of logits (N, N) whose matching pairs are on the diagonal."""
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def group_by_scene(images: Shard) -> list[np.ndarray]:
    """Return the indices (K,) of the images of each scene."""
    scenes = np.array([label.scene for label in images.labels])
    return [np.nonzero(scenes == scene)[0] for scene in np.unique(scenes)]


def sample_batch(by_scene: list[np.ndarray], recipe: ClipRecipe, rng: Rng) -> np.ndarray:
    """Sample the indices of a batch from a few scenes, so that objects distinguish the images.

    In a batch from all scenes, the scene alone identifies most images, and little but the colour of objects is learned.
    """
    scenes = rng.choice(len(by_scene), recipe.scenes_per_batch, replace=False)
    return rng.choice(np.concatenate([by_scene[scene] for scene in scenes]), recipe.batch)


def caption_pairs(images: Shard, indices: np.ndarray, rng: Rng) -> list[list[str]]:
    """Sample two captions for each of the images at ``indices``; "a photo" replaces empty ones."""
    labels = [images.labels[index] for index in indices.tolist()]
    return [[sample_caption(label, rng) or "a photo" for label in labels] for _ in range(2)]


def train_clip(
    images: Shard,
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    budget: Budget,
    device: torch.device,
    recipe: ClipRecipe,
    initial_model: Path | None = None,
) -> Progress:
    """Train on uint8 images and their labels, continuing from ``checkpoint`` if it exists.

    Otherwise it starts from the CLIP model beside the pipeline folder ``initial_model``, or from scratch. Captions are
    contrasted with images and with another wording of themselves (as in DeCLIP, Li et al. 2022), so that the text
    encoder learns before the image encoder does.
    """
    torch.manual_seed(recipe.seed)
    clip = new_clip(tokenizer)
    if initial_model is not None:
        warm_start_clip(clip, tokenizer, initial_model)
    clip.to(device)  # type: ignore[arg-type]
    by_scene = group_by_scene(images)

    def loss_fn(step: int, used: float) -> Tensor:
        rng = np.random.default_rng(recipe.seed + step)
        indices = sample_batch(by_scene, recipe, rng)
        pixels = normalize(images.values[torch.from_numpy(indices)]).to(device)
        wordings = [tokenise(tokenizer, captions).to(device) for captions in caption_pairs(images, indices, rng)]
        with autocast(device):
            output = clip(wordings[0], pixels)  # type: ignore[call-arg]
            reworded = F.normalize(clip.text_projection(clip.text_model(wordings[1]).pooler_output), dim=-1)
            between_texts = clip.logit_scale.exp() * output.text_embeds @ reworded.T
        return contrastive_loss(output.logits_per_image.float()) + contrastive_loss(between_texts.float())

    training = Training("clip", {"clip": clip}, list(clip.parameters()), checkpoint, recipe.learning_rate, recipe.batch)
    return training.run(budget, loss_fn)


def load_clip(checkpoint: Path, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Load the CLIP model of a checkpoint. Raises FileNotFoundError if there is none."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"no CLIP model at {checkpoint}: run the `clip` stage first")
    clip = new_clip(tokenizer)
    load_checkpoint(checkpoint, {"clip": clip})
    return clip.eval().requires_grad_(False)


def save_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save the CLIP model in float16 with its processor."""
    processor = CLIPImageProcessorPil(
        do_resize=True,
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    deepcopy(clip).half().save_pretrained(folder)
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
