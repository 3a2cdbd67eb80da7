"""The judge: a small classifier of images into objects, scenes and attributes, to score the base model.

It is trained on renders of its own (shards from FIRST_SHARD on, with other seeds than the generator's), and neither its
weights nor its predictions are used in any other training. It knows the objects and scenes of the toy world only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toybox.attributes import ATTRIBUTES
from toybox.autoencoder import to_signal
from toybox.labels import Label
from toybox.loop import Budget, Progress, Training, autocast, load_checkpoint
from toybox.objects import OBJECTS
from toybox.scenes import SCENES
from toybox.shards import Shard, render_missing

FIRST_SHARD = 90_000
"""First shard of the judge's training data; the generator's shards have lower numbers."""
EXAM_SHARD = 99_999
"""Shard that tests the judge; it is never trained on."""

OBJECT_NAMES: tuple[str, ...] = tuple(thing.name for thing in OBJECTS)
SCENE_NAMES: tuple[str, ...] = tuple(SCENES)
ATTRIBUTE_NAMES: tuple[str, ...] = ("", *ATTRIBUTES)
"""Class names in the order of their indices. The first attribute is none."""

FEATURES = 128
SHARPNESS = 20.0
"""Scale from cosine similarities to logits."""
UNKNOWN = -100
"""Target that the loss ignores: the object where an image shows two, or one in other colours."""


@dataclass(frozen=True)
class JudgeRecipe:
    """Channels of the judge's three levels, and its hyperparameters."""

    channels: tuple[int, int, int] = (32, 64, 192)
    batch: int = 128
    learning_rate: float = 3e-3
    smoothing: float = 0.1
    """Label smoothing of objects: many look alike when small and blurred."""
    shift: int = 8
    """Maximum translation in pixels, in either direction."""
    jitter: float = 0.08
    """Maximum relative change of each colour channel, and absolute change of brightness."""
    noise: float = 0.06
    """Maximum standard deviation of the noise on images in [−1, 1]."""
    seed: int = 0


@dataclass(frozen=True)
class Verdict:
    """Predicted class indices of objects, scenes and attributes, (N,) each."""

    objects: Tensor
    scenes: Tensor
    attributes: Tensor


@dataclass(frozen=True)
class Exam:
    """Accuracy for objects, scenes and attributes; attributes among the images that have one."""

    objects: float
    scenes: float
    attributes: float


class Block(nn.Module):
    """Residual block of two convolutions (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *conv_norm(channels, channels, 3), nn.ReLU(inplace=True), *conv_norm(channels, channels, 3)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Apply the block to features (N, C, h, w)."""
        return F.relu(maps + self.convolutions(maps), inplace=True)


class Judge(nn.Module):
    """Residual network over 32×32, 16×16 and 8×8 features, pooled to one vector, with a head for each question.

    Scenes and attributes are linear in that vector. Objects are classified by the cosine between a projection of it and
    each object's direction (NormFace, Wang et al. 2017), so that images of one object have similar features in every
    scene and attribute, even if the judge was not trained on the object.
    """

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        first, second, third = channels
        self.body = nn.Sequential(
            *conv_norm(3, first, 7, stride=4),
            nn.ReLU(inplace=True),
            Block(first),
            *conv_norm(first, second, 3, stride=2),
            nn.ReLU(inplace=True),
            Block(second),
            Block(second),
            *conv_norm(second, third, 3, stride=2),
            nn.ReLU(inplace=True),
            Block(third),
        )
        self.features = nn.Linear(2 * third, FEATURES)
        # "things" and "looks" are the keys of the published weights
        self.things = nn.Linear(FEATURES, len(OBJECT_NAMES), bias=False)
        self.scenes = nn.Linear(2 * third, len(SCENE_NAMES))
        self.looks = nn.Linear(2 * third, len(ATTRIBUTE_NAMES))

    def pool(self, signal: Tensor) -> Tensor:
        """Pool images (N, 3, H, W) in [−1, 1] to vectors (N, 2C)."""
        # only the input: optimiser state is restored from checkpoints in contiguous layout
        maps = self.body(signal.contiguous(memory_format=torch.channels_last))
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)

    def object_features(self, pooled: Tensor) -> Tensor:
        """Project pooled vectors to normalized object features (N, FEATURES) in float32."""
        return F.normalize(self.features(pooled).float(), dim=1)

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of objects, scenes and attributes of images (N, 3, H, W) in [−1, 1]."""
        pooled = self.pool(signal)
        cosines = self.object_features(pooled) @ F.normalize(self.things.weight, dim=1).T
        return SHARPNESS * cosines, self.scenes(pooled), self.looks(pooled)


def conv_norm(inside: int, outside: int, side: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """Return a convolution and its batch norm."""
    return nn.Conv2d(inside, outside, side, stride, side // 2, bias=False), nn.BatchNorm2d(outside)


def new_judge(recipe: JudgeRecipe) -> Judge:
    """Create an untrained judge; 1.1 M parameters by default."""
    return Judge(recipe.channels)


def render_judge_shards(sprites: Path, folder: Path, count: int, size: int) -> None:
    """Render the judge's training data, ``count`` shards in total."""
    render_missing(sprites, folder, range(FIRST_SHARD, FIRST_SHARD + count), size)


def label_targets(labels: Iterable[Label]) -> Tensor:
    """Return the class indices (N, 3) of each label's object, scene and attribute, UNKNOWN where ambiguous."""
    things, scenes, looks = (
        {name: number for number, name in enumerate(names)} for names in (OBJECT_NAMES, SCENE_NAMES, ATTRIBUTE_NAMES)
    )
    rows = [
        (UNKNOWN, scenes[label.scene], UNKNOWN)
        if label.second_object
        else (UNKNOWN if label.hue_shift else things[label.object], scenes[label.scene], looks[label.attribute])
        for label in labels
    ]
    return torch.tensor(rows)


def sample_batch(pictures: Tensor, recipe: JudgeRecipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample a batch: indices (N,) and randomly translated images, uint8 (N, H, W, 3)."""
    chosen = torch.randint(len(pictures), (recipe.batch,), generator=generator)
    moves = torch.randint(-recipe.shift, recipe.shift + 1, (2, recipe.batch, 1), generator=generator)
    height, width = pictures.shape[1:3]
    rows = (torch.arange(height) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + moves[1]).clamp(0, width - 1)
    return chosen, pictures[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def degrade(signal: Tensor, recipe: JudgeRecipe, generator: torch.Generator) -> Tensor:
    """Randomly change colours, sharpness and noise of images (N, 3, H, W) in [−1, 1]: generated images are blurred."""
    count = len(signal)

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.empty(count, channels, 1, 1).uniform_(low, high, generator=generator).to(signal.device)

    soft = F.interpolate(F.avg_pool2d(signal, 2), scale_factor=2, mode="bilinear")
    # one noise tensor for the batch, scaled for each image: sampling it is slow
    noise = torch.randn(signal.shape[1:], generator=generator).to(signal.device)
    rough = soft.sub_(signal).mul_(draw(-0.5, 1.0).clamp(min=0)).add_(signal)
    rough.mul_(draw(1 - recipe.jitter, 1 + recipe.jitter, 3)).add_(draw(-recipe.jitter, recipe.jitter))
    return rough.addcmul_(noise, draw(-recipe.noise, recipe.noise)).clamp_(-1, 1)


def train_judge(
    pictures: Shard, checkpoint: Path, budget: Budget, device: torch.device, recipe: JudgeRecipe
) -> Progress:
    """Train on uint8 images and their labels, continuing from ``checkpoint`` if it exists."""
    torch.manual_seed(recipe.seed)
    judge = new_judge(recipe).to(device).train()
    targets = label_targets(pictures.labels)

    def loss_of(step: int, spent: float) -> Tensor:
        generator = torch.Generator().manual_seed(recipe.seed + step)
        chosen, moved = sample_batch(pictures.values, recipe, generator)
        signal = degrade(to_signal(moved).to(device), recipe, generator)
        with autocast(device):
            answers = judge(signal)
        smoothings = (recipe.smoothing, 0.0, 0.0)
        losses = [
            F.cross_entropy(logits.float(), wanted, ignore_index=UNKNOWN, reduction="sum", label_smoothing=smoothing)
            for logits, wanted, smoothing in zip(answers, targets[chosen].T.to(device), smoothings, strict=True)
        ]
        return torch.stack(losses).sum() / recipe.batch

    training = Training(
        "judge", {"judge": judge}, list(judge.parameters()), checkpoint, recipe.learning_rate, recipe.batch
    )
    return training.run(budget, loss_of)


def load_judge(checkpoint: Path, recipe: JudgeRecipe | None = None) -> Judge:
    """Load the judge from a checkpoint. Raises FileNotFoundError if there is none."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"no judge at {checkpoint}: run the `judge` stage first")
    judge = new_judge(recipe or JudgeRecipe())
    load_checkpoint(checkpoint, {"judge": judge})
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def examine(judge: Judge, pictures: Tensor, batch: int = 64) -> Verdict:
    """Classify uint8 images (N, H, W, 3)."""
    signals = signal_batches(judge, pictures, batch)
    answers = [[logits.argmax(1).cpu() for logits in judge(signal)] for signal in signals]
    return Verdict(*(torch.cat(parts) for parts in zip(*answers, strict=True)))


@torch.no_grad()
def features(judge: Judge, pictures: Tensor, batch: int = 64) -> Tensor:
    """Return normalized object features (N, FEATURES) of uint8 images (N, H, W, 3)."""
    signals = signal_batches(judge, pictures, batch)
    return torch.cat([judge.object_features(judge.pool(signal)).cpu() for signal in signals])


def signal_batches(judge: Judge, pictures: Tensor, batch: int) -> Iterable[Tensor]:
    """Yield batches of uint8 images (N, H, W, 3) as float (N, 3, H, W) on the judge's device."""
    device = next(judge.parameters()).device
    return (to_signal(part).to(device) for part in pictures.split(batch))


def accuracy(found: Tensor, wanted: Tensor) -> float:
    """Share of predictions equal to the targets, without UNKNOWN ones; NaN if all are."""
    asked = wanted != UNKNOWN
    return (found[asked] == wanted[asked]).float().mean().item()


def exam(judge: Judge, pictures: Shard) -> Exam:
    """Test the judge on uint8 images that it was not trained on."""
    verdict = examine(judge, pictures.values)
    things, scenes, looks = label_targets(pictures.labels).T
    worn = torch.where(looks == 0, UNKNOWN, looks)
    return Exam(accuracy(verdict.objects, things), accuracy(verdict.scenes, scenes), accuracy(verdict.attributes, worn))
