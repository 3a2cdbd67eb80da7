"""`python -m toybox`: make the embedded base model, in stages or all at once, and score it."""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from toybox.autoencoder import DecoderRecipe
from toybox.base import BaseRecipe
from toybox.clip import ClipRecipe
from toybox.judge import JudgeRecipe
from toybox.loop import Budget
from toybox.recipe import JUDGE_SHARDS, MINUTES, Workshop
from toybox.score import table
from toybox.shards import SHARD_SIZE
from toybox.sheet import sample_sheet
from toybox.sprites import PACKAGE
from toybox.subjects import render_photos, save_photos

SHARDS = 40
"""Shards of the whole recipe, of 1,024 images each: some hundred images of every thing."""


def build_parser() -> argparse.ArgumentParser:
    """Create the parser with a subcommand for each stage."""
    parser = argparse.ArgumentParser(prog="python -m toybox", description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/toybox"), help="renders, latents, checkpoints")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="compile the UNet, which speeds up training")
    parser.add_argument("--from", type=Path, dest="ancestor", help="initialise from this pipeline folder")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    render = stages.add_parser("render", help=f"render the world in shards of {SHARD_SIZE} images")
    add_render_options(render)
    for stage, purpose in (
        ("clip", "train the CLIP model, whose text encoder is the base model's"),
        ("base", "train the UNet"),
        ("decoder", "train the decoder of the autoencoder"),
    ):
        add_budget(stages.add_parser(stage, help=purpose), stage)
    stages.add_parser("encoder", help="fit the autoencoder's encoder, in closed form")
    stages.add_parser("encode", help="encode renders to latents")
    add_output(stages.add_parser("assemble", help="write the pipeline folder"), "assets/toybox")
    judge = stages.add_parser("judge", help="train the judge, a classifier that scores the base model")
    add_sprites(judge)
    judge.add_argument("--shards", type=int, default=JUDGE_SHARDS, help=f"training shards (default {JUDGE_SHARDS})")
    add_budget(judge, "judge")
    judge.add_argument("--output", type=Path, help="also write its weights alone, as benchmarks/judge.safetensors")
    score = stages.add_parser("score", help="score a pipeline folder with the judge, for the model card")
    score.add_argument("model", type=Path)
    add_sprites(score)
    score.add_argument("--photos", type=Path, help="real photos for the autoencoder's PSNR")
    everything = stages.add_parser("all", help="run every stage for its default minutes")
    add_render_options(everything)
    add_output(everything, "assets/toybox")
    sheet = stages.add_parser("sheet", help="generate sample prompts with a pipeline folder")
    sheet.add_argument("model", type=Path)
    sheet.add_argument("--guidance", type=float, default=3.0)
    sheet.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_output(sheet, "sheet.png")
    subject = stages.add_parser("subject", help="render training photos of a held-out thing")
    subject.add_argument("name")
    subject.add_argument("--count", type=int, default=5)
    subject.add_argument("--seed", type=int, default=0)
    subject.add_argument("--hue", type=float, default=0.0, help="rotation of the hue, 0 to 1")
    add_sprites(subject)
    add_output(subject, "subject")
    return parser


def add_sprites(parser: argparse.ArgumentParser) -> None:
    """Add --sprites."""
    parser.add_argument("--sprites", type=Path, required=True, help=f"the assets folder of the npm package {PACKAGE}")


def add_render_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of rendering the world."""
    add_sprites(parser)
    parser.add_argument("--shards", type=int, default=SHARDS, help=f"total number of shards (default {SHARDS})")


def add_budget(parser: argparse.ArgumentParser, stage: str) -> None:
    """Add the options for length, batch size and learning rate of a training."""
    usual = ", ".join(f"{minutes[stage]} on {device}" for device, minutes in MINUTES.items())
    parser.add_argument("--minutes", type=float, help=f"training minutes over all sessions (default {usual})")
    parser.add_argument("--steps", type=int, help="number of steps instead of minutes")
    parser.add_argument("--batch", type=int, help="images per step; some hundred on a GPU")
    parser.add_argument("--rate", type=float, help="peak learning rate")


def budget(chosen: argparse.Namespace) -> Budget:
    """Return the budget: the given steps or minutes, or the stage's default minutes."""
    if chosen.steps:
        return Budget(steps=chosen.steps)
    return Budget(minutes=chosen.minutes or MINUTES[chosen.device.type][chosen.stage])


def pace(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the given batch size and learning rate as fields of a recipe."""
    asked = {"batch": getattr(chosen, "batch", None), "learning_rate": getattr(chosen, "rate", None)}
    return {name: value for name, value in asked.items() if value}


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --output."""
    parser.add_argument("--output", type=Path, default=Path(default), help=f"default {default}")


def main(arguments: list[str] | None = None) -> None:
    """Run one stage."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    chosen = build_parser().parse_args(arguments)
    asked = pace(chosen)
    workshop = Workshop(
        chosen.work_dir,
        chosen.device,
        chosen.ancestor,
        base_recipe=BaseRecipe(compile=chosen.compile, **asked),
        clip_recipe=ClipRecipe(**asked),
        decoder_recipe=DecoderRecipe(**asked),
        judge_recipe=JudgeRecipe(**asked),
    )
    match chosen.stage:
        case "render":
            workshop.render(chosen.sprites, chosen.shards)
        case "encoder":
            workshop.make_encoder()
        case "encode":
            workshop.encode()
        case "clip":
            workshop.make_clip(budget(chosen))
        case "base":
            workshop.make_base(budget(chosen))
        case "decoder":
            workshop.make_decoder(budget(chosen))
        case "assemble":
            workshop.assemble(chosen.output)
        case "judge":
            workshop.make_judge(chosen.sprites, chosen.shards, budget(chosen), chosen.output)
        case "score":
            print(table(workshop.score(chosen.model, chosen.sprites, chosen.photos)))
        case "all":
            workshop.make_all(chosen.sprites, chosen.shards, chosen.output)
        case "sheet":
            sample_sheet(chosen.model, chosen.guidance, chosen.seeds).save(chosen.output)
        case "subject":
            save_photos(
                render_photos(chosen.sprites, chosen.name, chosen.count, chosen.seed, chosen.hue), chosen.output
            )


if __name__ == "__main__":
    main()
