"""`python -m toybox`: make the embedded base model, in stages or all at once, and score it."""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from toybox.autoencoder import DecoderRecipe
from toybox.base_training import BaseRecipe
from toybox.benchmark import write_benchmark
from toybox.clip import ClipRecipe
from toybox.judge_training import JudgeRecipe
from toybox.loop import Budget
from toybox.score import score_table
from toybox.shards import SHARD_SIZE
from toybox.sheet import generate_sheet
from toybox.sprites import PACKAGE
from toybox.stages import JUDGE_SHARDS, MINUTES, Stages
from toybox.subjects import render_photos, save_photos

SHARDS = 40
"""Default number of shards, of 1,024 images each: some hundred images of every object."""


def build_parser() -> argparse.ArgumentParser:
    """Create the parser with a subcommand for each stage."""
    parser = argparse.ArgumentParser(prog="python -m toybox", description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/toybox"), help="renders, latents, checkpoints")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="compile the UNet, which speeds up training")
    parser.add_argument("--from", type=Path, dest="initial_model", help="initialise from this pipeline folder")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    render = stages.add_parser("render", help=f"render the world in shards of {SHARD_SIZE} images")
    add_render_options(render)
    for stage, purpose in (
        ("clip", "train the CLIP model, whose text encoder is the base model's"),
        ("base", "train the UNet"),
        ("decoder", "train the decoder of the autoencoder"),
    ):
        add_training_options(stages.add_parser(stage, help=purpose), stage)
    stages.add_parser("encoder", help="fit the autoencoder's encoder, in closed form")
    stages.add_parser("encode", help="encode renders to latents")
    add_output(stages.add_parser("assemble", help="write the pipeline folder"), "assets/toybox")
    add_scoring_parsers(stages)
    everything = stages.add_parser("all", help="run every stage for its default minutes")
    add_render_options(everything)
    add_output(everything, "assets/toybox")
    sheet = stages.add_parser("sheet", help="generate sample prompts with a pipeline folder")
    sheet.add_argument("model", type=Path)
    sheet.add_argument("--guidance", type=float, default=3.0)
    sheet.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_output(sheet, "sheet.png")
    subject = stages.add_parser("subject", help="render training photos of a held-out object")
    subject.add_argument("name")
    subject.add_argument("--count", type=int, default=5)
    subject.add_argument("--seed", type=int, default=0)
    subject.add_argument("--hue", type=float, default=0.0, help="rotation of the hue, 0 to 1")
    add_sprites(subject)
    add_output(subject, "subject")
    return parser


def add_scoring_parsers(stages: Any) -> None:
    """Add the subcommands that train the judge and score a model with it."""
    judge = stages.add_parser("judge", help="train the judge, a classifier that scores the base model")
    add_sprites(judge)
    judge.add_argument("--shards", type=int, default=JUDGE_SHARDS, help=f"training shards (default {JUDGE_SHARDS})")
    add_training_options(judge, "judge")
    judge.add_argument("--output", type=Path, help="also write its weights alone")
    benchmark = stages.add_parser("benchmark", help="write the shipped files of the benchmark of subjects")
    add_sprites(benchmark)
    score = stages.add_parser("score", help="score a pipeline folder with the judge, for the model card")
    score.add_argument("model", type=Path)
    add_sprites(score)
    score.add_argument("--photos", type=Path, help="real photos for the autoencoder's PSNR")


def add_sprites(parser: argparse.ArgumentParser) -> None:
    """Add --sprites."""
    parser.add_argument("--sprites", type=Path, required=True, help=f"the assets folder of the npm package {PACKAGE}")


def add_render_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for rendering the world."""
    add_sprites(parser)
    parser.add_argument("--shards", type=int, default=SHARDS, help=f"total number of shards (default {SHARDS})")


def add_training_options(parser: argparse.ArgumentParser, stage: str) -> None:
    """Add the options for length, batch size and learning rate of a training."""
    defaults = ", ".join(f"{minutes[stage]} on {device}" for device, minutes in MINUTES.items())
    parser.add_argument("--minutes", type=float, help=f"training minutes over all sessions (default {defaults})")
    parser.add_argument("--steps", type=int, help="number of steps instead of minutes")
    parser.add_argument("--batch", type=int, help="images per step; some hundred on a GPU")
    parser.add_argument("--rate", type=float, help="peak learning rate")


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --output."""
    parser.add_argument("--output", type=Path, default=Path(default), help=f"default {default}")


def training_budget(args: argparse.Namespace) -> Budget:
    """Return the budget: the given steps or minutes, or the stage's default minutes."""
    if args.steps:
        return Budget(steps=args.steps)
    return Budget(minutes=args.minutes or MINUTES[args.device.type][args.stage])


def recipe_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the given batch size and learning rate as fields of a recipe."""
    options = {"batch": getattr(args, "batch", None), "learning_rate": getattr(args, "rate", None)}
    return {name: value for name, value in options.items() if value}


def main(arguments: list[str] | None = None) -> None:
    """Run one stage."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = build_parser().parse_args(arguments)
    options = recipe_options(args)
    stages = Stages(
        args.work_dir,
        args.device,
        args.initial_model,
        base_recipe=BaseRecipe(compile=args.compile, **options),
        clip_recipe=ClipRecipe(**options),
        decoder_recipe=DecoderRecipe(**options),
        judge_recipe=JudgeRecipe(**options),
    )
    match args.stage:
        case "render":
            stages.render(args.sprites, args.shards)
        case "encoder":
            stages.fit_encoder()
        case "encode":
            stages.encode()
        case "clip":
            stages.train_clip(training_budget(args))
        case "base":
            stages.train_base(training_budget(args))
        case "decoder":
            stages.train_decoder(training_budget(args))
        case "assemble":
            stages.assemble(args.output)
        case "judge":
            stages.train_judge(args.sprites, args.shards, training_budget(args), args.output)
        case "score":
            print(score_table(stages.score(args.model, args.sprites, args.photos)))
        case "all":
            stages.run_all(args.sprites, args.shards, args.output)
        case "sheet":
            generate_sheet(args.model, args.guidance, args.seeds).save(args.output)
        case "benchmark":
            write_benchmark(args.sprites)
        case "subject":
            save_photos(render_photos(args.sprites, args.name, args.count, args.seed, args.hue), args.output)


if __name__ == "__main__":
    main()
