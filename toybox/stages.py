"""The stages of making the embedded base model: render, encode, train, assemble, score.

Each stage reads the files of the previous ones in the work folder and resumes its own, so an interrupted run can be
started again.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from hra_diffusion.files import atomic_path, write_text
from toybox.assembly import assemble
from toybox.autoencoder import DecoderRecipe, encode, mean_psnr, new_autoencoder, train_decoder
from toybox.base import Base
from toybox.base_training import BaseRecipe, load_average, train_base
from toybox.card import Facts, write_card
from toybox.checkpoints import read_progress, strip_checkpoint
from toybox.clip import ClipRecipe, load_clip, save_clip, train_clip
from toybox.denoising import PartialDenoising, denoise_partially
from toybox.judge import load_judge
from toybox.judge_training import TEST_SHARD, JudgeRecipe, evaluate, render_judge_shards, train_judge
from toybox.loop import Budget
from toybox.rendering import world_fingerprint
from toybox.score import Score, load_score, save_score
from toybox.scoring import score_base, unet_digest
from toybox.shards import (
    SHARD_SIZE,
    Shard,
    exclude_unseen,
    load_shard,
    load_shards,
    render_held_out,
    render_missing,
    render_shard,
    save_shard,
)
from toybox.tokenizer import train_tokenizer

logger = logging.getLogger(__name__)

DECODER_SHARDS = 10
"""Maximum number of shards that train the autoencoder; the base model uses all."""

DENOISED_SHARDS = 3
"""Shards that are partially denoised for the decoder on a CPU (a minute each on two cores); DECODER_SHARDS on a GPU."""

JUDGE_SHARDS = 64
"""Default number of shards that train the judge; another one tests it."""

MINUTES = {
    "cpu": {"clip": 46, "base": 1000, "decoder": 40, "judge": 90},
    "cuda": {"clip": 5, "base": 15, "decoder": 2, "judge": 5},
}
"""Default training minutes by device and stage.

CPU: what the published weights would take on two cores; for the UNet, 4.6 M images at 77 per second. GPU: an H100
trains the UNet on 6,600 images per second (compiled, batch size 512) and the decoder on 1,900; CLIP and judge are
estimates. The judge: after 190,000 images (22 minutes) it classified 94 % of new renders correctly, but 12 of 25
generated octopuses as peaches; after 400,000 images none of them; after 730,000 images all renders were correct."""


@dataclass(frozen=True)
class Stages:
    """The stages, given a work folder, a training device and hyperparameters.

    ``initial_model``: a pipeline folder whose weights initialise the new model.
    """

    folder: Path
    device: torch.device
    initial_model: Path | None = None
    base_recipe: BaseRecipe = field(default_factory=BaseRecipe)
    clip_recipe: ClipRecipe = field(default_factory=ClipRecipe)
    decoder_recipe: DecoderRecipe = field(default_factory=DecoderRecipe)
    judge_recipe: JudgeRecipe = field(default_factory=JudgeRecipe)
    shard_size: int = SHARD_SIZE

    @property
    def renders(self) -> Path:
        """Folder of image shards."""
        return self.folder / "renders"

    @property
    def latents(self) -> Path:
        """Folder of latent shards, one for each image shard."""
        return self.folder / "latents"

    def render(self, sprites: Path, count: int) -> None:
        """Render ``count`` shards in total, and images of held-out objects for evaluation.

        Raises ValueError if the folder holds renders of another version of the world.
        """
        self._check_world()
        render_missing(sprites, self.renders, range(count), self.shard_size)
        if not self._held_out.exists():
            save_shard(render_held_out(sprites), self._held_out)

    def fit_encoder(self) -> None:
        """Fit the encoder to the first shards, with an untrained decoder, or copy the initial model's autoencoder.

        The encoder doesn't change in later stages.
        """
        torch.manual_seed(0)
        if self.initial_model is not None:
            self._save_vae(AutoencoderKL.from_pretrained(self.initial_model / "vae"))  # pyright: ignore[reportArgumentType]
        else:
            self._save_vae(new_autoencoder(self._first_images()))

    def encode(self) -> None:
        """Encode every image shard that has no latents yet."""
        vae = self.load_vae()
        for path in sorted(self.renders.glob("*.safetensors")):
            if not (self.latents / path.name).exists():
                shard = load_shard(path)
                latents = encode(vae, shard.values).half()
                save_shard(Shard(latents, shard.labels, shard.coverage), self.latents / path.name)
                logger.info("encoded %s", path.name)

    def train_clip(self, budget: Budget) -> None:
        """Train the CLIP model on the rendered images; its text encoder is the base model's."""
        images = exclude_unseen(load_shards(self.renders))
        train_clip(images, train_tokenizer(), self._clip, budget, self.device, self.clip_recipe, self.initial_model)

    def train_base(self, budget: Budget) -> None:
        """Train the UNet on the encoded latents with the CLIP model's text encoder."""
        checkpoint, tokenizer = self.folder / "base.safetensors", train_tokenizer()
        clip = load_clip(self._clip, tokenizer)
        latents = exclude_unseen(load_shards(self.latents))
        progress = train_base(
            latents, tokenizer, checkpoint, budget, self.device, self.base_recipe, clip, self.initial_model
        )
        logger.info("base: %d images in %.0f minutes", progress.images, progress.seconds / 60)

    def train_decoder(self, budget: Budget) -> None:
        """Train the decoder on renders and on latents denoised by the base model; the encoder doesn't change."""
        vae, images, denoised = self.load_vae(), self._first_images(), self._denoised()
        train_decoder(vae, images, denoised, self.folder / "decoder.safetensors", budget, self.decoder_recipe)
        self._save_vae(vae)

    def assemble(self, output: Path) -> None:
        """Write a StableDiffusionPipeline folder with its model card, and the CLIP model beside it."""
        vae, tokenizer = self.load_vae(), train_tokenizer()
        base = self._load_base(vae.config["latent_channels"])
        clip = load_clip(self._clip, tokenizer)
        facts = Facts(
            recipe=self.base_recipe,
            base=read_progress(self.folder / "base.safetensors"),
            decoder=read_progress(self.folder / "decoder.safetensors"),
            psnr=mean_psnr(vae, load_shard(self._held_out).values),
            score=self._score_of(base.unet),
            history=self._history.read_text().strip() if self._history.exists() else "",
            parameters=sum(parameter.numel() for part in (base, vae) for parameter in part.parameters()),
        )
        assemble(base, vae.cpu(), tokenizer, write_card(facts), output)
        with atomic_path(output.with_name(f"{output.name}-clip")) as unfinished:
            save_clip(clip, tokenizer, unfinished)

    def train_judge(self, sprites: Path, shards: int, budget: Budget, output: Path | None = None) -> None:
        """Render the judge's training data, train it, and write its weights to ``output`` if given.

        Raises ValueError if the folder holds renders of another version of the world.
        """
        self._check_world()
        render_judge_shards(sprites, self.folder / "judge", shards, self.shard_size)
        train_judge(load_shards(self.folder / "judge"), self._judge, budget, self.device, self.judge_recipe)
        judge = load_judge(self._judge, self.judge_recipe.channels)
        accuracies = evaluate(judge, render_shard(sprites, TEST_SHARD, self.shard_size))
        logger.info("judge: accuracy on new renders: objects %.1f %%, scenes %.1f %%, attributes %.1f %%",
                    100 * accuracies.objects, 100 * accuracies.scenes, 100 * accuracies.attributes)  # fmt: skip
        if output is not None:
            strip_checkpoint(self._judge, output)

    def score(self, model: Path, sprites: Path, photos: Path | None = None) -> Score:
        """Score a pipeline folder with the judge and save the score for the model card."""
        judge = load_judge(self._judge, self.judge_recipe.channels)
        score = score_base(model, judge, sprites, photos, sheet=self.folder / "score.png")
        save_score(score, self._score)
        return score

    def run_all(self, sprites: Path, shards: int, output: Path) -> None:
        """Run every stage with its default minutes, then assemble again with the score in the card."""
        minutes = MINUTES[self.device.type]
        self.render(sprites, shards)
        self.fit_encoder()
        self.encode()
        self.train_clip(Budget(minutes=minutes["clip"]))
        self.train_base(Budget(minutes=minutes["base"]))
        self.train_decoder(Budget(minutes=minutes["decoder"]))
        self.assemble(output)
        self.train_judge(sprites, JUDGE_SHARDS, Budget(minutes=minutes["judge"]))
        self.score(output, sprites)
        self.assemble(output)

    def load_vae(self) -> AutoencoderKL:
        """Load the autoencoder. Raises FileNotFoundError if there is none yet."""
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
        """Return the saved score if it is of these weights."""
        if not self._score.exists():
            return None
        score = load_score(self._score)
        return score if score.unet == unet_digest(unet) else None

    def _check_world(self) -> None:
        stored = self.folder / "world.txt"
        if stored.exists() and stored.read_text() != world_fingerprint():
            raise ValueError(f"{self.folder} holds renders of another version of the world: choose another --work-dir")
        write_text(stored, world_fingerprint())

    def _load_base(self, latent_channels: int) -> Base:
        return load_average(self.folder / "base.safetensors", train_tokenizer(), latent_channels, self.base_recipe)

    def _denoised(self) -> Tensor:
        latents = load_shards(self.latents, DENOISED_SHARDS if self.device.type == "cpu" else DECODER_SHARDS)
        base = self._load_base(latents.values.shape[1]).to(self.device)
        return denoise_partially(base, latents, train_tokenizer(), PartialDenoising())

    def _first_images(self) -> Tensor:
        return load_shards(self.renders, DECODER_SHARDS).values

    def _save_vae(self, vae: AutoencoderKL) -> None:
        with atomic_path(self.folder / "vae") as unfinished:
            vae.save_pretrained(unfinished)
