"""Put two adapters on one pipeline and generate with both, at different strengths."""

import argparse
from pathlib import Path

import hra_diffusion as hra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path, help="an adapter file")
    parser.add_argument("second", type=Path, help="another adapter file for the same base model")
    parser.add_argument("--base", default="toybox")
    parser.add_argument("--prompt", default="a photo of {first} next to {second} in the snow")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    given = parser.parse_args()

    pipe = hra.load_base(given.base)
    first = hra.load(pipe, given.first, "first")
    second = hra.load(pipe, given.second, "second")
    prompt = given.prompt.format(first=first.subject, second=second.subject)
    given.output.mkdir(parents=True, exist_ok=True)
    # adapters are applied in order: the second adapts the weights that the first one left
    for strength in (0.0, 0.5, 1.0):
        (image,) = hra.generate(pipe, prompt, {first.name: 1.0, second.name: strength}, seed=0)
        path = hra.save_png(image, given.output / f"mixed-{strength:g}.png")
        print(f"{first.name} at 1, {second.name} at {strength:g}: {path}")


if __name__ == "__main__":
    main()
