"""Compare the base model and several adapters from the same initial noise, with scores."""

import argparse
from pathlib import Path

from PIL import Image

import hra_diffusion as hra
from hra_diffusion.evaluation.clip import default_clip, load_clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapters", type=Path, nargs="+", help="adapter files of one subject")
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="photos of the subject, for the scores")
    parser.add_argument("--base", default="toybox")
    parser.add_argument("--output", type=Path, default=Path("outputs/compared"))
    given = parser.parse_args()

    pipe = hra.load_base(given.base)
    variants = [hra.Variant("base", {}, "subject", "subject")]
    for number, file in enumerate(given.adapters):
        info = hra.load(pipe, file, f"{number} {file.stem}")
        variants.append(hra.Variant(file.stem, {info.name: 1.0}, info.subject, info.class_noun))
    variants[0] = hra.Variant("base", {}, info.class_noun, info.class_noun)

    comparison = hra.compare(
        pipe,
        variants,
        ["a photo of {subject}", "a {subject} on the beach"],
        seeds=[0, 1],
        photos=[Image.open(photo).convert("RGB") for photo in given.photos],
        clip=load_clip(default_clip(given.base)),
    )
    grid = hra.save_comparison(comparison, given.output)
    print(f"grid: {grid}")
    for sample in comparison.samples:
        print(f"{sample.variant}: {sample.request.prompt!r}, seed {sample.request.seed}: {sample.score}")


if __name__ == "__main__":
    main()
