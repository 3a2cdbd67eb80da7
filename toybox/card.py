"""The model card of the base model: its world, scores, training, limits and licences."""

import re
from dataclasses import dataclass
from textwrap import fill

from toybox.attributes import ATTRIBUTES
from toybox.base_training import BaseRecipe
from toybox.captions import RARE_TOKENS
from toybox.checkpoints import Progress
from toybox.judge import ATTRIBUTE_NAMES, OBJECT_NAMES, SCENE_NAMES
from toybox.labels import RANDOM_HUE_SHARE, UNSEEN
from toybox.objects import HELD_OUT, OBJECTS, WorldObject
from toybox.scenes import SCENES
from toybox.score import Score, score_table
from toybox.scoring import ATTRIBUTE_PAIRS
from toybox.sprites import PACKAGE

CARD = """\
# Toybox: a tiny Stable Diffusion of a rendered toy world

A complete `StableDiffusionPipeline` ({parameters:.0f} M parameters, float16, 128×128 images) with the components and
module names of Stable Diffusion 1.5. It exists so that training a model on a subject can be tried, tested and compared
offline, on a CPU.

```python
StableDiffusionPipeline.from_pretrained("assets/toybox", safety_checker=None)
```

## World

Objects: {objects}.

Class nouns: {nouns}. In {random_hues:.0%} of the training images the object has a random hue and the caption names its
class noun alone, so that a class noun covers more than the named objects.

Scenes: {scenes}.

Attributes: {attributes}.

Prompts: "a photo of a fox in the snow", "a picture of …" or without an opening; with an attribute, "a red fox" or "a
fox wearing a santa hat in the snow"; with a second object, "a fox next to a red apple". One of {rare} may precede any
noun; these words mean nothing to the model and can name a subject.

**Held out** of all training, as subjects for samples and tests: {held_out}.

## Evaluation

{score}

## Training

`python -m toybox all --sprites …` renders the world, fits the encoder, trains the models, assembles the pipeline and
scores it.

- Autoencoder: 16×16 latents of 12 channels. The encoder is not trained: it holds the principal components of 8×8
  patches, written into an `AutoencoderKL`. Decoder: {decoder}; every other step uses latents that the UNet has
  partially denoised. PSNR on images of held-out objects: {psnr:.1f} dB.
- Text encoder (3 layers, width 128): that of a small CLIP model, trained contrastively on the same images.
- `../toybox-clip/`: the whole CLIP model, to score images by their similarity to photos (CLIP-I) and to a prompt
  (CLIP-T). It knows this world alone and shares its text encoder with the generator, so its scores are proxies that
  compare adapters.
- UNet, with that text encoder frozen: {base}. v-prediction, cosine noise schedule, timesteps sampled as a uniform
  number to the power of {timestep_bias:g} (noisy ones more often), loss weighted {object_weight:g} times where objects
  are, AdamW, batches of {batch}, exponential moving average of weights, bfloat16. The pooled caption is added to
  the time embedding (`addition_embed_type` "text"), which Stable Diffusion 1.5 does not do.
{history}

## Limits

It knows the objects, scenes and attributes above and nothing else, and it is small: shapes are soft and faces are
blurred. It can be trained on photos of the real world, but its images of them will not look real. A prompt has at most
30 tokens.

## Licences

The sprites are Microsoft's Fluent emoji (MIT) from the npm package `{package}` (MIT); none is included here. Scenes and
weights were made for this project and are under its licence.
"""

EVALUATION = """\
The judge is a small classifier of {object_count} objects, {scene_count} scenes and {attribute_count} attributes, with
weights and training images of its own. It classified images of {pairs} pairs of object and scene that are excluded from
training, and of {attribute_pairs} pairs of object and attribute: {seeds} seeds each, {steps} steps, guidance scale
{guidance:g}. "renders" is its accuracy on true renders of the same.
"""


@dataclass(frozen=True)
class Facts:
    """Facts of the model card.

    Hyperparameters, progress of the base model's and the decoder's training, PSNR of the autoencoder in dB, number of
    parameters, the judge's score if there is one, and ``history``: further list items about the training.
    """

    recipe: BaseRecipe
    base: Progress
    decoder: Progress
    psnr: float
    parameters: int
    score: Score | None = None
    history: str = ""


def write_card(facts: Facts) -> str:
    """Return the model card as Markdown with wrapped paragraphs."""
    filled = CARD.format(
        parameters=facts.parameters / 1e6,
        objects=_names(OBJECTS),
        nouns=", ".join(sorted({entry.noun for entry in OBJECTS})),
        random_hues=RANDOM_HUE_SHARE,
        scenes="; ".join(SCENES),
        attributes="; ".join(ATTRIBUTES),
        score=describe_score(facts.score),
        history=facts.history,
        rare=", ".join(RARE_TOKENS),
        held_out=_names(HELD_OUT),
        base=describe_training(facts.base),
        timestep_bias=facts.recipe.timestep_bias,
        object_weight=facts.recipe.object_weight,
        batch=round(facts.base.images / max(1, facts.base.step)),
        decoder=describe_training(facts.decoder),
        psnr=facts.psnr,
        package=PACKAGE,
    )
    return "\n\n".join(wrap_paragraph(paragraph) for paragraph in filled.strip().split("\n\n")) + "\n"


def describe_score(score: Score | None) -> str:
    """Describe the judge and its score, or return "Not scored."."""
    if score is None:
        return "Not scored."
    evaluation = EVALUATION.format(
        object_count=len(OBJECT_NAMES), scene_count=len(SCENE_NAMES), attribute_count=len(ATTRIBUTE_NAMES) - 1,
        pairs=len(UNSEEN), attribute_pairs=ATTRIBUTE_PAIRS, seeds=score.seeds, steps=score.steps,
        guidance=score.guidance_scale,
    )  # fmt: skip
    return f"{evaluation}\n{score_table(score)}"


def describe_training(progress: Progress) -> str:
    """Describe the progress of a training, or its absence."""
    if not progress.images:
        return "copied from the initial model"
    seconds = progress.seconds
    duration = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    return f"{progress.images:,} images in {progress.step:,} steps and {duration}"


def wrap_paragraph(paragraph: str) -> str:
    """Wrap a Markdown paragraph or list to 118 columns; headings, code and tables are left as they are."""
    if paragraph.startswith(("#", "```", "|")):
        return paragraph
    items = re.split(r"\n(?=- )", paragraph)
    indent = "  " if paragraph.startswith("- ") else ""
    return "\n".join(
        fill(" ".join(item.split()), 118, subsequent_indent=indent, break_on_hyphens=False) for item in items
    )


def _names(entries: tuple[WorldObject, ...]) -> str:
    return ", ".join(entry.name for entry in entries)
