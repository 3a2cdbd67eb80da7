"""The recipe of the embedded base, stage by stage: world, autoencoder, latents, base, decoder, assembly.

A `Workshop` is a folder for what is in the making. Every stage picks up what the one before left there and continues
what it had begun itself, so the whole recipe can be stopped and run again.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from hra_diffusion.files import atomic_path, write_text
from toybox.autoencoder import DecoderRecipe, encode, measure, new_autoencoder, train_decoder
from toybox.base import Base, BaseRecipe, RedrawRecipe, assemble, load_average, redraw, train_base
from toybox.card import Figures, write_card
from toybox.clip import ClipRecipe, load_clip, save_clip, train_clip
from toybox.judge import EXAM_SHARD, JudgeRecipe, exam, load_judge, render_for_judge, train_judge
from toybox.loop import Budget, read_progress, strip_checkpoint
from toybox.score import Score, digest, load_score, save_score, score_base
from toybox.shards import (
    SHARD_SIZE,
    Shard,
    load_shard,
    load_shards,
    render_held_out,
    render_missing,
    render_shard,
    save_shard,
    without_unseen,
)
from toybox.tokenizer import train_tokenizer
from toybox.world import fingerprint

logger = logging.getLogger(__name__)

DECODER_SHARDS = 10
"""How many shards of pictures the autoencoder learns from at most; the base learns from all."""

REDRAWN_SHARDS = 3
"""How many of them the base redraws for the decoder, about a minute each on two CPU cores; a GPU redraws all."""

JUDGE_SHARDS = 64
"""How many shards of its own the judge learns from; one more examines it."""

MINUTES = {
    "cpu": {"clip": 46, "base": 1000, "decoder": 40, "judge": 90},
    "cuda": {"clip": 5, "base": 15, "decoder": 2, "judge": 5},
}
"""How long each part is trained. On two CPU cores: about what the present weights would have taken there, for the UNet
4.6 M pictures at 77 a second. On a GPU: an H100 showed the UNet 6,600 a second, in batches of 512 and compiled, and the
decoder 1,900; for the CLIP pair and the judge it is a guess. The judge wants its time: trained on 190,000 pictures
(22 minutes) it tells 94 % of fresh renders, but took 12 of 25 drawn octopuses for peaches; on 400,000 none; on 730,000
it tells all renders."""


@dataclass(frozen=True)
class Workshop:
    """Where the model is made: `folder` for work data, the device that trains, and how the base is trained.

    `ancestor` is a finished pipeline folder whose weights the parts start from, instead of from nothing.
    """

    folder: Path
    device: torch.device
    ancestor: Path | None = None
    base_recipe: BaseRecipe = field(default_factory=BaseRecipe)
    clip_recipe: ClipRecipe = field(default_factory=ClipRecipe)
    decoder_recipe: DecoderRecipe = field(default_factory=DecoderRecipe)
    judge_recipe: JudgeRecipe = field(default_factory=JudgeRecipe)
    shard_size: int = SHARD_SIZE

    @property
    def renders(self) -> Path:
        """Shards of pictures."""
        return self.folder / "renders"

    @property
    def latents(self) -> Path:
        """Shards of latents, one for each shard of pictures."""
        return self.folder / "latents"

    def render(self, sprites: Path, count: int) -> None:
        """Draw the world: `count` shards in all, and some pictures of held-out things to measure with.

        Raises ValueError when the folder holds pictures of another world than today's.
        """
        self._check_world()
        render_missing(sprites, self.renders, range(count), self.shard_size)
        if not self._held_out.exists():
            save_shard(render_held_out(sprites), self._held_out)

    def make_encoder(self) -> None:
        """Fit the autoencoder's encoder to the first shards, its decoder untrained; or take the ancestor's whole.

        From then on the encoder stands still.
        """
        torch.manual_seed(0)
        if self.ancestor is not None:
            self._save_vae(AutoencoderKL.from_pretrained(self.ancestor / "vae"))  # pyright: ignore[reportArgumentType]
        else:
            self._save_vae(new_autoencoder(self._some_pictures()))

    def encode(self) -> None:
        """Turn every shard of pictures that has no latents yet into latents."""
        vae = self.load_vae()
        for path in sorted(self.renders.glob("*.safetensors")):
            if not (self.latents / path.name).exists():
                shard = load_shard(path)
                latents = encode(vae, shard.values).half()
                save_shard(Shard(latents, shard.labels, shard.covers), self.latents / path.name)
                logger.info("encoded %s", path.name)

    def make_clip(self, budget: Budget) -> None:
        """Train the CLIP pair on the pictures there are; its text tower is the base's text encoder."""
        pictures = without_unseen(load_shards(self.renders))
        train_clip(pictures, train_tokenizer(), self._clip, budget, self.device, self.clip_recipe, self.ancestor)

    def make_base(self, budget: Budget) -> None:
        """Train the UNet on the latents there are, under the CLIP pair's text tower."""
        checkpoint, tokenizer = self.folder / "base.safetensors", train_tokenizer()
        clip = load_clip(self._clip, tokenizer)
        latents = without_unseen(load_shards(self.latents))
        progress = train_base(
            latents, tokenizer, checkpoint, budget, self.device, self.base_recipe, clip, self.ancestor
        )
        logger.info("base: %d pictures seen in %.0f minutes", progress.pictures, progress.seconds / 60)

    def make_decoder(self, budget: Budget) -> None:
        """Train the decoder, also on what the base makes of pictures; latents, and so the base, do not change."""
        vae, pictures, redrawn = self.load_vae(), self._some_pictures(), self._redraw()
        train_decoder(vae, pictures, redrawn, self.folder / "decoder.safetensors", budget, self.decoder_recipe)
        self._save_vae(vae)

    def assemble(self, output: Path) -> None:
        """Write the parts as a StableDiffusionPipeline folder with its model card, and the CLIP pair beside it."""
        vae, tokenizer = self.load_vae(), train_tokenizer()
        base = self._load_base(vae.config["latent_channels"])
        clip = load_clip(self._clip, tokenizer)
        figures = Figures(
            recipe=self.base_recipe,
            base=read_progress(self.folder / "base.safetensors"),
            decoder=read_progress(self.folder / "decoder.safetensors"),
            decibels=measure(vae, load_shard(self._held_out).values),
            score=self._score_of(base.unet),
            history=self._history.read_text().strip() if self._history.exists() else "",
            parameters=sum(parameter.numel() for part in (base, vae) for parameter in part.parameters()),
        )
        assemble(base, vae.cpu(), tokenizer, write_card(figures), output)
        with atomic_path(output.with_name(f"{output.name}-clip")) as unfinished:
            save_clip(clip, tokenizer, unfinished)

    def make_judge(self, sprites: Path, shards: int, budget: Budget, output: Path | None = None) -> None:
        """Draw pictures for the judge alone and train it on them; its weights go to `output`, too, if that is given.

        Raises ValueError when the folder holds pictures of another world than today's.
        """
        self._check_world()
        render_for_judge(sprites, self.folder / "judge", shards, self.shard_size)
        train_judge(load_shards(self.folder / "judge"), self._judge, budget, self.device, self.judge_recipe)
        judge = load_judge(self._judge, self.judge_recipe)
        found = exam(judge, render_shard(sprites, EXAM_SHARD, self.shard_size))
        logger.info("judge: things %.1f %%, scenes %.1f %%, looks %.1f %% right in fresh renders",
                    100 * found.things, 100 * found.scenes, 100 * found.looks)  # fmt: skip
        if output is not None:
            strip_checkpoint(self._judge, output)

    def score(self, model: Path, sprites: Path, photos: Path | None = None) -> Score:
        """Ask the judge about the pictures of a pipeline folder; the answer is kept for the model card."""
        judge = load_judge(self._judge, self.judge_recipe)
        found = score_base(model, judge, sprites, photos, sheet=self.folder / "score.png")
        save_score(found, self._score)
        return found

    def make_everything(self, sprites: Path, shards: int, output: Path) -> None:
        """Every stage in turn, each for its usual time; assembled again with its score in the card."""
        minutes = MINUTES[self.device.type]
        self.render(sprites, shards)
        self.make_encoder()
        self.encode()
        self.make_clip(Budget(minutes=minutes["clip"]))
        self.make_base(Budget(minutes=minutes["base"]))
        self.make_decoder(Budget(minutes=minutes["decoder"]))
        self.assemble(output)
        self.make_judge(sprites, JUDGE_SHARDS, Budget(minutes=minutes["judge"]))
        self.score(output, sprites)
        self.assemble(output)

    def load_vae(self) -> AutoencoderKL:
        """The autoencoder as far as it is; raises FileNotFoundError when there is none yet."""
        if not (self.folder / "vae").exists():
            raise FileNotFoundError(f"no autoencoder in {self.folder}: run the `encoder` stage first")
        return AutoencoderKL.from_pretrained(self.folder / "vae").to(self.device)  # pyright: ignore[reportArgumentType]

    @property
    def _held_out(self) -> Path:
        return self.folder / "held_out.safetensors"

    @property
    def _judge(self) -> Path:
        return self.folder / "judge.safetensors"

    @property
    def _score(self) -> Path:
        return self.folder / "score.json"

    @property
    def _history(self) -> Path:
        return self.folder / "history.md"

    @property
    def _clip(self) -> Path:
        return self.folder / "clip.safetensors"

    def _score_of(self, unet: nn.Module) -> Score | None:
        """What was measured of these very weights; none, if it was of others or never."""
        if not self._score.exists():
            return None
        found = load_score(self._score)
        return found if found.unet == digest(unet) else None

    def _check_world(self) -> None:
        drawn = self.folder / "world.txt"
        if drawn.exists() and drawn.read_text() != fingerprint():
            raise ValueError(f"{self.folder} holds another world than today's: choose another --work-dir")
        write_text(drawn, fingerprint())

    def _load_base(self, latent_channels: int) -> Base:
        return load_average(self.folder / "base.safetensors", train_tokenizer(), latent_channels, self.base_recipe)

    def _redraw(self) -> Tensor:
        latents = load_shards(self.latents, REDRAWN_SHARDS if self.device.type == "cpu" else DECODER_SHARDS)
        base = self._load_base(latents.values.shape[1]).to(self.device)
        return redraw(base, latents, train_tokenizer(), RedrawRecipe())

    def _some_pictures(self) -> Tensor:
        return load_shards(self.renders, DECODER_SHARDS).values

    def _save_vae(self, vae: AutoencoderKL) -> None:
        with atomic_path(self.folder / "vae") as unfinished:
            vae.save_pretrained(unfinished)
