"""Set up the state of a run: caches, adapter, optimiser."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from PIL import Image

from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_file
from hra_diffusion.generation.requests import Request, prompt_notes
from hra_diffusion.models import families, noise
from hra_diffusion.models.families.sdxl import uncropped
from hra_diffusion.models.prompts import plain, split
from training.config import TrainConfig
from training.data import class_images
from training.data.captions import final_captions
from training.data.latent_cache import LatentCache, encode, photo_time_ids
from training.data.photos import Dataset
from training.runs.events import Notice
from training.runs.run_folder import Run
from training.session.devices import offload
from training.session.model import Denoiser, add_adapter, checkpoint_gradients
from training.session.optimizer import make_optimizer
from training.session.phase_timer import PhaseTimer
from training.session.state import Session


def set_up(
    config: TrainConfig,
    run: Run,
    accelerator: Accelerator,
    pipe: StableDiffusionPipeline,
    album: Dataset,
    clock: PhaseTimer,
) -> Session:
    """Class images, caches, adapter, optimiser; and the last checkpoint where there is one."""
    for note in album.warnings:
        clock.emit(Notice(note.message))
    photos, class_images = cache_examples(config, run, accelerator, pipe, album, clock)
    parameters = add_adapter(config, pipe)
    denoiser = Denoiser(pipe, config.train_text_encoder).train()
    if config.gradient_checkpointing:
        checkpoint_gradients(pipe)
    denoiser, optimizer = accelerator.prepare(denoiser, make_optimizer(config, parameters))
    averages = {key: value.detach().clone() for key, value in parameters.items()} if config.ema_decay else {}
    probes = adapter_file.fingerprint(pipeline.components(pipe), config.name)
    return Session(
        config, run, accelerator, clock, pipe, denoiser, parameters, optimizer, photos, class_images, averages, probes,
        album, noise.of(pipe.scheduler),
    )  # fmt: skip


def cache_examples(
    config: TrainConfig,
    run: Run,
    accelerator: Accelerator,
    pipe: StableDiffusionPipeline,
    album: Dataset,
    clock: PhaseTimer,
) -> tuple[LatentCache, LatentCache | None]:
    """Photos and, with prior preservation, class images as cached latents and text."""
    captions = list(final_captions(config, {photo.path: photo.caption for photo in album.photos}).captions.values())
    for note in text_notes(config, pipe, captions):
        clock.emit(Notice(note))
    images, embed = [photo.image for photo in album.photos], not config.train_text_encoder
    size = images[0].size[0]
    class_pictures: list[Image.Image] = []
    if config.prior_loss_weight:
        with clock.phase("class images"), accelerator.main_process_first():
            folder = run.folder.parent / ".cache" / "class-images"
            asked = (config.class_noun, config.num_class_images, size, folder, config.sample_batch_size)
            class_pictures = list(class_images.class_images(pipe, *asked))
    photo_ids = class_ids = None
    if config.size_conditioning and families.size_conditioned(pipe):
        photo_ids = torch.stack([photo_time_ids(photo, config.flip) for photo in album.photos])
        class_ids = uncropped(size).float().expand(len(class_pictures), 1, -1)
    with clock.phase("cache"):
        photos = encode(pipe, images, captions, config.flip, embed, photo_ids)
        prompts = [class_images.class_prompt(config.class_noun)] * len(class_pictures)
        class_examples = encode(pipe, class_pictures, prompts, False, embed, class_ids) if class_pictures else None
    offload(pipe, config)
    return photos, class_examples


def text_notes(config: TrainConfig, pipe: StableDiffusionPipeline, captions: Sequence[str]) -> list[str]:
    """What the author of captions and sample prompts should know: what is cut, and what is read in another way."""
    found = []
    for caption in captions:
        if cut := split(families.tokenizer(pipe), caption)[1]:
            found.append(f"a caption is longer than the text encoder reads; these words are cut: “{cut}”")
        if plain(caption) != caption:
            found.append(f"captions carry no weights; “{caption}” is learned as it is written")
    samples = [Request(prompt.replace("{subject}", config.subject), config.seed) for prompt in config.sample_prompts]
    return list(dict.fromkeys([*found, *(f"sample prompts: {note}" for note in prompt_notes(pipe, samples))]))
