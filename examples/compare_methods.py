"""Compare the base model and several adapters from the same initial noise, with scores."""

import argparse
from pathlib import Path

from PIL import Image

import hra_diffusion as hra
from hra_diffusion.evaluation import clip as clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapters", type=Path, nargs="+", help="adapter files of one subject")
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="photos of the subject, for the scores")
    parser.add_argument("--base", default="toybox")
    parser.add_argument("--output", type=Path, default=Path("outputs/compared"))
    given = parser.parse_args()

    pipe = hra.load_base(given.base)
    infos = [hra.load(pipe, file, file.stem) for file in given.adapters]
    # {subject} in a prompt is the class noun for the base model, trigger and class noun for an adapter
    noun = infos[0].class_noun
    variants = [hra.Variant("base", {}, noun, noun)]
    variants += [hra.Variant(info.name, {info.name: 1.0}, info.subject, info.class_noun) for info in infos]

    clip, _ = clips.find_clip(given.base)
    comparison = hra.compare(
        pipe,
        variants,
        ["a {subject} on the beach"],
        seeds=[0, 1],
        settings=hra.Settings(steps=15),
        photos=[Image.open(photo).convert("RGB") for photo in given.photos],
        clip=clip,
    )
    grid = hra.save_comparison(comparison, given.output)
    print(f"grid: {grid}")
    for sample in comparison.samples:
        print(f"{sample.variant}: {sample.request.prompt!r}, seed {sample.request.seed}: {sample.score}")


if __name__ == "__main__":
    main()
