"""Train an adapter from Python and generate an image with it."""

import argparse
from pathlib import Path

import hra_diffusion as hra
from hra_diffusion.models.sources import ASSETS
from training import config
from training.loop import train
from training.runs.events import Event, Step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=ASSETS / "subjects" / "robot")
    parser.add_argument("--class-noun", default="toy")
    parser.add_argument("--method", default="hra", choices=hra.method_names())
    parser.add_argument("--name", default="example")
    parser.add_argument("--base", default="toybox")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the Quick preset's)")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    given = parser.parse_args()

    settings = config.parse(
        {
            "name": given.name,
            "photos": [given.photos],
            "class_noun": given.class_noun,
            "method": given.method,
            "base": given.base,
            "preset": "quick",
            "steps": given.steps,
            "sample_every": 0,
        }
    )
    adapter = train(settings, given.output, [print_loss])
    print(f"adapter: {adapter}")

    pipe = hra.load_base(given.base)
    info = hra.load(pipe, adapter)
    (image,) = hra.generate(pipe, f"a photo of {info.subject} in the snow", {info.name: 1.0}, seed=0)
    print(f"image: {hra.save_png(image, given.output / f'{given.name}.png')}")


def print_loss(event: Event) -> None:
    """Print the loss of every tenth step. A listener is called with every event of the run."""
    if isinstance(event, Step) and event.step % 10 == 0:
        print(f"step {event.step}: loss {event.loss:.3f}")


if __name__ == "__main__":
    main()
