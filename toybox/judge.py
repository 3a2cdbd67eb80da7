"""The judge: a small classifier that says what a picture shows, to score the base with.

It has weights and renders of its own (shards from FIRST_SHARD on, another seed than the generator's) and neither its
weights nor its answers reach any other training. The world is the same: it knows these drawings and scenes alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toybox.autoencoder import to_signal
from toybox.looks import LOOKS
from toybox.loop import Budget, Progress, Training, autocast, load_checkpoint
from toybox.scenes import SCENES
from toybox.shards import Shard, render_missing
from toybox.world import THINGS, Label

FIRST_SHARD = 90_000
"""The judge learns from the shards from here on; the generator's are far below."""
EXAM_SHARD = 99_999
"""The first of the shards that examine the judge, which it never learns from."""

THING_NAMES: tuple[str, ...] = tuple(thing.name for thing in THINGS)
SCENE_NAMES: tuple[str, ...] = tuple(SCENES)
LOOK_NAMES: tuple[str, ...] = ("", *LOOKS)
"""The names of the classes, in the order of their numbers. The first look is none."""

FEATURES = 128
SHARPNESS = 20.0
"""What cosines are multiplied by to become logits."""
UNKNOWN = -100
"""The class of what cannot be asked: which of two things is meant, and what one in other colours is called."""


@dataclass(frozen=True)
class JudgeRecipe:
    """How wide the judge is at its three levels, and how it is trained."""

    channels: tuple[int, int, int] = (32, 64, 192)
    batch: int = 128
    learning_rate: float = 3e-3
    smoothing: float = 0.1
    """Label smoothing of things: many look alike once they are small and soft."""
    shift: int = 8
    """Pixels a picture is moved by at most, either way."""
    jitter: float = 0.08
    """Part by which each colour channel is made stronger or weaker at most, and brightness raised or lowered."""
    noise: float = 0.06
    """Largest deviation of noise, of signals in −1…1."""
    seed: int = 0


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in pictures: for each the number of a thing, a scene and a look, (N,) each."""

    things: Tensor
    scenes: Tensor
    looks: Tensor


@dataclass(frozen=True)
class Exam:
    """The shares of pictures whose thing, scene and look the judge says rightly; looks among those that have one."""

    things: float
    scenes: float
    looks: float


class Block(nn.Module):
    """Two convolutions beside an identity (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *convolve(channels, channels, 3), nn.ReLU(inplace=True), *convolve(channels, channels, 3)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, C, h, w) to maps of the same shape."""
        return F.relu(maps + self.convolutions(maps), inplace=True)


class Judge(nn.Module):
    """A residual network over 32×32, 16×16 and 8×8 maps, pooled to one vector, with a head for each question.

    Scenes and looks are read off that vector. Things are told by the angle between their features, a part of it, and
    each thing's own direction (NormFace, Wang et al. 2017): so pictures of one thing lie close together whatever it
    wears and wherever it stands, also of a thing that the judge has not learned.
    """

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        first, second, third = channels
        self.body = nn.Sequential(
            *convolve(3, first, 7, stride=4),
            nn.ReLU(inplace=True),
            Block(first),
            *convolve(first, second, 3, stride=2),
            nn.ReLU(inplace=True),
            Block(second),
            Block(second),
            *convolve(second, third, 3, stride=2),
            nn.ReLU(inplace=True),
            Block(third),
        )
        self.features = nn.Linear(2 * third, FEATURES)
        self.things = nn.Linear(FEATURES, len(THING_NAMES), bias=False)
        self.scenes = nn.Linear(2 * third, len(SCENE_NAMES))
        self.looks = nn.Linear(2 * third, len(LOOK_NAMES))

    def pool(self, signal: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in −1…1 as one vector each."""
        # weights stay as they are: the optimiser's state comes back from a checkpoint in plain layout
        maps = self.body(signal.contiguous(memory_format=torch.channels_last))
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)

    def describe(self, pooled: Tensor) -> Tensor:
        """What vectors tell of the thing alone: features (N, FEATURES) of length 1, in float32."""
        return F.normalize(self.features(pooled).float(), dim=1)

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The logits of things, scenes and looks of pictures (N, 3, H, W) in −1…1."""
        pooled = self.pool(signal)
        cosines = self.describe(pooled) @ F.normalize(self.things.weight, dim=1).T
        return SHARPNESS * cosines, self.scenes(pooled), self.looks(pooled)


def convolve(inside: int, outside: int, side: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """A convolution and its batch norm."""
    return nn.Conv2d(inside, outside, side, stride, side // 2, bias=False), nn.BatchNorm2d(outside)


def new_judge(recipe: JudgeRecipe) -> Judge:
    """An untrained judge; 1.1 M parameters at the usual width."""
    return Judge(recipe.channels)


def render_for_judge(sprites: Path, folder: Path, count: int, size: int) -> None:
    """Draw the judge's own pictures: `count` shards in all."""
    render_missing(sprites, folder, range(FIRST_SHARD, FIRST_SHARD + count), size)


def number_labels(labels: Iterable[Label]) -> Tensor:
    """The numbers (N, 3) of each label's thing, scene and look; UNKNOWN for what cannot be asked."""
    things, scenes, looks = (
        {name: number for number, name in enumerate(names)} for names in (THING_NAMES, SCENE_NAMES, LOOK_NAMES)
    )
    rows = [
        (UNKNOWN, scenes[label.scene], UNKNOWN)
        if label.beside
        else (UNKNOWN if label.hue else things[label.thing], scenes[label.scene], looks[label.look])
        for label in labels
    ]
    return torch.tensor(rows)


def draw_batch(pictures: Tensor, recipe: JudgeRecipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The numbers (N) of a batch's pictures, and the pictures themselves, moved a little: uint8 (N, H, W, 3)."""
    chosen = torch.randint(len(pictures), (recipe.batch,), generator=generator)
    moves = torch.randint(-recipe.shift, recipe.shift + 1, (2, recipe.batch, 1), generator=generator)
    height, width = pictures.shape[1:3]
    rows = (torch.arange(height) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + moves[1]).clamp(0, width - 1)
    return chosen, pictures[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def roughen(signal: Tensor, recipe: JudgeRecipe, generator: torch.Generator) -> Tensor:
    """Pictures (N, 3, H, W) in −1…1 with colours, sharpness and noise changed a little: drawn pictures are soft."""
    count = len(signal)

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.empty(count, channels, 1, 1).uniform_(low, high, generator=generator).to(signal.device)

    soft = F.interpolate(F.avg_pool2d(signal, 2), scale_factor=2, mode="bilinear")
    # one sheet of noise for all, of another strength each: drawing it is slow
    noise = torch.randn(signal.shape[1:], generator=generator).to(signal.device)
    rough = soft.sub_(signal).mul_(draw(-0.5, 1.0).clamp(min=0)).add_(signal)
    rough.mul_(draw(1 - recipe.jitter, 1 + recipe.jitter, 3)).add_(draw(-recipe.jitter, recipe.jitter))
    return rough.addcmul_(noise, draw(-recipe.noise, recipe.noise)).clamp_(-1, 1)


def train_judge(
    pictures: Shard, checkpoint: Path, budget: Budget, device: torch.device, recipe: JudgeRecipe
) -> Progress:
    """Train on uint8 pictures and their labels, continuing from `checkpoint` if it exists."""
    torch.manual_seed(recipe.seed)
    judge = new_judge(recipe).to(device).train()
    targets = number_labels(pictures.labels)

    def loss_of(step: int, spent: float) -> Tensor:
        generator = torch.Generator().manual_seed(recipe.seed + step)
        chosen, moved = draw_batch(pictures.values, recipe, generator)
        signal = roughen(to_signal(moved).to(device), recipe, generator)
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
    """The judge of a checkpoint. Raises FileNotFoundError when there is none yet."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"no judge at {checkpoint}: run the `judge` stage first")
    judge = new_judge(recipe or JudgeRecipe())
    load_checkpoint(checkpoint, {"judge": judge})
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def examine(judge: Judge, pictures: Tensor, batch: int = 64) -> Verdict:
    """What the judge sees in uint8 pictures (N, H, W, 3)."""
    answers = [[logits.argmax(1).cpu() for logits in judge(signal)] for signal in to_signals(judge, pictures, batch)]
    return Verdict(*(torch.cat(parts) for parts in zip(*answers, strict=True)))


@torch.no_grad()
def features(judge: Judge, pictures: Tensor, batch: int = 64) -> Tensor:
    """Vectors (N, FEATURES) of length 1 for uint8 pictures (N, H, W, 3): near where things are alike."""
    return torch.cat([judge.describe(judge.pool(signal)).cpu() for signal in to_signals(judge, pictures, batch)])


def to_signals(judge: Judge, pictures: Tensor, batch: int) -> Iterable[Tensor]:
    """uint8 pictures (N, H, W, 3) as the judge takes them, batch by batch."""
    device = next(judge.parameters()).device
    return (to_signal(part).to(device) for part in pictures.split(batch))


def share_right(found: Tensor, wanted: Tensor) -> float:
    """The share of numbers found that are as wanted, of those that can be asked; NaN if none can."""
    asked = wanted != UNKNOWN
    return (found[asked] == wanted[asked]).float().mean().item()


def exam(judge: Judge, pictures: Shard) -> Exam:
    """How often the judge is right about uint8 pictures that it has not learned from."""
    verdict = examine(judge, pictures.values)
    things, scenes, looks = number_labels(pictures.labels).T
    worn = torch.where(looks == 0, UNKNOWN, looks)
    return Exam(
        share_right(verdict.things, things), share_right(verdict.scenes, scenes), share_right(verdict.looks, worn)
    )
