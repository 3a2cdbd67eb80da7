"""The model card that goes with the assembled base: its world, its licences, how it was made, and what it cannot do."""

import re
from dataclasses import dataclass
from textwrap import fill

from training.toybox.captions import RARE_TOKENS
from training.toybox.loop import Progress
from training.toybox.scenes import SCENES
from training.toybox.sprites import PACKAGE
from training.toybox.world import HELD_OUT, THINGS, Thing

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

Class nouns: {nouns}.

Scenes: {scenes}.

Prompts are worded "a photo of a fox in the snow", "a picture of …" or without an opening. Before any noun may stand
one of {rare}, which mean nothing and are free to name a subject.

**Held out** of all training, as subjects for samples and tests: {held_out}.

## How it was made

`python -m training.toybox all --sprites …` draws the world, fits the encoder, trains, and assembles.

- Autoencoder: 16×16 latents of 12 channels. The encoder is not trained: it is the principal components of 8×8
  patches, written into an `AutoencoderKL`. Decoder: {decoder}. Round trip of pictures of held-out things:
  {decibels:.1f} dB.
- Text tower (3 layers, width 128): the text half of a small CLIP pair, trained by contrast on the same pictures.
- `../toybox-clip/`: the whole pair, to score pictures with (likeness to photos, CLIP-I, and to a prompt, CLIP-T). It
  knows this world alone and its text half is the generator's own: its figures compare adapters, and are proxies.
- UNet, under that text tower: {base}. v-prediction, cosine noise schedule, timesteps drawn by min-SNR weight, AdamW,
  batch 32, running average of weights, bfloat16 arithmetic. Besides attending to the caption's tokens, it hears the
  whole caption in its time embedding (`addition_embed_type` "text"), which Stable Diffusion 1.5 does not.
- The stored weights grew through trials: their first 323,000 pictures were seen under earlier text towers, the first
  131,000 without the whole caption, the first 165,000 in a world of more varied poses. The recipe as it stands was not
  rerun from nothing.
- On two CPU cores it saw 33 pictures a second: an hour showed every thing some 1,800 times. A GPU should do the
  same in minutes.

## Limits

It knows the things and scenes above and nothing else, and it is small: shapes are soft and faces smudged.
Looking at one picture of each of the 64 things (seed 11, guidance scale 3), we recognised about two thirds at
once; whale, turtle, fish, owl, poodle, airplane, sneaker and crown not. Scenes follow the prompt; things of a
scene's own colours melt into it. Photos of the real world can be used to teach it a subject, but will not come
out looking real. A text has at most 30 tokens.

## Licences

The drawings are Microsoft's Fluent emoji (MIT) by way of the npm package `{package}` (MIT); none is included here.
Scenes and weights were made for this project and are under its licence.
"""


@dataclass(frozen=True)
class Figures:
    """What was measured: how far the two trainings came, the round trip's PSNR in dB, and the number of parameters."""

    base: Progress
    decoder: Progress
    decibels: float
    parameters: int


def write_card(figures: Figures) -> str:
    """The model card as Markdown, its paragraphs wrapped."""
    filled = CARD.format(
        parameters=figures.parameters / 1e6,
        things=names(THINGS),
        nouns=", ".join(sorted({thing.noun for thing in THINGS})),
        scenes="; ".join(SCENES),
        rare=", ".join(RARE_TOKENS),
        held_out=names(HELD_OUT),
        base=in_words(figures.base),
        decoder=in_words(figures.decoder),
        decibels=figures.decibels,
        package=PACKAGE,
    )
    return "\n\n".join(wrap_paragraph(paragraph) for paragraph in filled.strip().split("\n\n")) + "\n"


def wrap_paragraph(paragraph: str) -> str:
    """A Markdown paragraph or list with its lines filled to 118 columns; headings and code as they are."""
    if paragraph.startswith(("#", "```")):
        return paragraph
    items = re.split(r"\n(?=- )", paragraph)
    indent = "  " if paragraph.startswith("- ") else ""
    return "\n".join(
        fill(" ".join(item.split()), 118, subsequent_indent=indent, break_on_hyphens=False) for item in items
    )


def names(things: tuple[Thing, ...]) -> str:
    """Their names in order, with commas."""
    return ", ".join(thing.name for thing in things)


def in_words(progress: Progress) -> str:
    """How far a training came."""
    return f"{progress.pictures:,} pictures in {progress.step:,} steps and {progress.seconds / 60:.0f} minutes"
