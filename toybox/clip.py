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

from toybox.autoencoder import to_signal
from toybox.captions import sample_caption
from toybox.drawing import Rng
from toybox.inherit import inherit_clip
from toybox.loop import Budget, Progress, Training, autocast, load_checkpoint
from toybox.rendering import IMAGE_SIZE
from toybox.shards import Shard
from toybox.tokenizer import MAX_LENGTH, tokenise

TEXT_WIDTH = 128


@dataclass(frozen=True)
class ClipRecipe:
    """Hyperparameters of the CLIP model's training."""

    batch: int = 128
    scenes: int = 3
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
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def group_by_scene(pictures: Shard) -> list[np.ndarray]:
    """Return the indices of the images of each scene."""
    scenes = np.array([label.scene for label in pictures.labels])
    return [np.nonzero(scenes == scene)[0] for scene in np.unique(scenes)]


def sample_batch(by_scene: list[np.ndarray], recipe: ClipRecipe, rng: Rng) -> np.ndarray:
    """Sample the indices of a batch from a few scenes, so that objects distinguish the images.

    In a batch from all scenes the scene alone identifies most images, and objects are learned by little but colour.
    """
    scenes = rng.choice(len(by_scene), recipe.scenes, replace=False)
    return rng.choice(np.concatenate([by_scene[scene] for scene in scenes]), recipe.batch)


def caption_pairs(pictures: Shard, chosen: np.ndarray, rng: Rng) -> list[list[str]]:
    """Sample two captions for each chosen image; "a photo" replaces empty ones."""
    labels = [pictures.labels[number] for number in chosen.tolist()]
    return [[sample_caption(label, rng) or "a photo" for label in labels] for _ in range(2)]


def train_clip(
    pictures: Shard,
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    budget: Budget,
    device: torch.device,
    recipe: ClipRecipe,
    ancestor: Path | None = None,
) -> Progress:
    """Train on uint8 images and their labels, continuing from ``checkpoint`` if it exists.

    Otherwise training starts from the CLIP model beside the pipeline folder ``ancestor``, or from scratch. Captions are
    contrasted with images and with another wording of themselves (as in DeCLIP, Li et al. 2022), so that the text
    encoder learns before the image encoder does.
    """
    torch.manual_seed(recipe.seed)
    clip = new_clip(tokenizer)
    if ancestor is not None:
        inherit_clip(clip, tokenizer, ancestor)
    clip.to(device)  # type: ignore[arg-type]
    by_scene = group_by_scene(pictures)

    def loss_of(step: int, spent: float) -> Tensor:
        rng = np.random.default_rng(recipe.seed + step)
        chosen = sample_batch(by_scene, recipe, rng)
        signal = to_signal(pictures.values[torch.from_numpy(chosen)]).to(device)
        wordings = [tokenise(tokenizer, captions).to(device) for captions in caption_pairs(pictures, chosen, rng)]
        with autocast(device):
            found = clip(wordings[0], signal)  # type: ignore[call-arg]
            reworded = F.normalize(clip.text_projection(clip.text_model(wordings[1]).pooler_output), dim=-1)
            between_texts = clip.logit_scale.exp() * found.text_embeds @ reworded.T
        return contrastive_loss(found.logits_per_image.float()) + contrastive_loss(between_texts.float())

    training = Training("clip", {"clip": clip}, list(clip.parameters()), checkpoint, recipe.learning_rate, recipe.batch)
    return training.run(budget, loss_of)


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
