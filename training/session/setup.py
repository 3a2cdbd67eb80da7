"""Set up the state of a run: caches, adapter, optimiser."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from hra_diffusion import pipeline
from hra_diffusion.adapters.fingerprint import adapter_fingerprint
from hra_diffusion.generation.requests import Request, prompt_notes
from hra_diffusion.models import families, noise
from hra_diffusion.models.families.sdxl import uncropped_time_ids
from hra_diffusion.models.prompts import split, without_weights
from training.config import TrainConfig
from training.data import class_images
from training.data.buckets import grouped
from training.data.captions import final_captions
from training.data.dataset import Dataset
from training.data.latent_cache import LatentCache, encode, mask_weights, photo_time_ids
from training.data.photo import Photo
from training.runs.events import Notice
from training.runs.run_folder import Run
from training.session.devices import offload
from training.session.model import Denoiser, add_adapter, compile_blocks, enable_gradient_checkpointing
from training.session.optimizer import make_optimizer
from training.session.phase_timer import PhaseTimer
from training.session.processes import Processes
from training.session.state import Session


def set_up(
    config: TrainConfig,
    run: Run,
    accelerator: Accelerator,
    pipe: StableDiffusionPipeline,
    dataset: Dataset,
    timer: PhaseTimer,
    processes: Processes,
) -> Session:
    """Build the latent caches, attach the adapter and create the optimiser. Missing class images are generated."""
    captions = final_captions(config, {photo.path: photo.caption for photo in dataset.photos})
    timer.emit(captions)
    texts = list(captions.captions.values())
    for message in [*(warning.message for warning in dataset.warnings), *prompt_notices(config, pipe, texts)]:
        timer.emit(Notice(message))
    buckets = buckets_of(dataset, texts)
    generated: list[list[Image.Image]] = []
    if config.prior_loss_weight:
        with timer.phase("class images"), accelerator.main_process_first():
            folder = run.folder.parent / ".cache" / "class-images"
            generated = [load_class_images(config, pipe, bucket, len(dataset.photos), folder) for bucket in buckets]
    with timer.phase("cache"):
        photo_caches = [encode_photos(config, pipe, bucket) for bucket in buckets]
        class_caches = [encode_class_images(config, pipe, images) for images in generated]
    offload(pipe, config)
    parameters = add_adapter(config, pipe)
    denoiser = Denoiser(pipe, config.train_text_encoder).train()
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(pipe, config)
    if config.compile:
        compile_blocks(pipe, accelerator.device)
    # in evaluation mode, it is not wrapped for several processes, whose gradients ``Processes`` averages
    denoiser = accelerator.prepare_model(denoiser, evaluation_mode=True)
    optimizer = accelerator.prepare_optimizer(make_optimizer(config, parameters, accelerator.device))
    processes.share(parameters.values())
    averages = {key: value.detach().clone() for key, value in parameters.items()} if config.ema_decay else {}
    fingerprint = adapter_fingerprint(pipeline.components(pipe), config.name)
    return Session(
        config, run, accelerator, timer, pipe, denoiser, parameters, optimizer, photo_caches, class_caches, averages,
        fingerprint, dataset, noise.of(pipe.scheduler), processes,
    )  # fmt: skip


class Bucket(NamedTuple):
    """Photos whose training images have one size, and their captions."""

    photos: Sequence[Photo]
    captions: Sequence[str]


def buckets_of(dataset: Dataset, captions: Sequence[str]) -> list[Bucket]:
    """Return the photos and their captions by the size of the training image."""
    groups = grouped([photo.image.size for photo in dataset.photos])
    return [Bucket([dataset.photos[i] for i in group], [captions[i] for i in group]) for group in groups]


def load_class_images(
    config: TrainConfig, pipe: StableDiffusionPipeline, bucket: Bucket, photos: int, folder: Path
) -> list[Image.Image]:
    """Return class images of the size of a bucket: its share of ``config.num_class_images`` among all ``photos``."""
    count = math.ceil(config.num_class_images * len(bucket.photos) / photos)
    size = bucket.photos[0].image.size
    return list(class_images.load_class_images(pipe, config.class_noun, count, size, folder, config.sample_batch_size))


def encode_photos(config: TrainConfig, pipe: StableDiffusionPipeline, bucket: Bucket) -> LatentCache:
    """Encode the photos of a bucket with their masks, their mirror images if ``config.flip`` is set, and captions."""
    images, flip = [photo.image for photo in bucket.photos], config.flip
    ids = uncropped_ids(pipe, images, views=1 + flip)
    if ids is not None and config.size_conditioning:
        ids = torch.stack([photo_time_ids(photo, flip) for photo in bucket.photos])
    width, height = (side // pipe.vae_scale_factor for side in images[0].size)
    weights = mask_weights(
        [photo.mask for photo in bucket.photos], (width, height), flip, config.unmasked_weight,
        config.normalize_masked_area_loss,
    )  # fmt: skip
    return encode(pipe, images, bucket.captions, flip, not config.train_text_encoder, ids, weights)


def encode_class_images(
    config: TrainConfig, pipe: StableDiffusionPipeline, images: Sequence[Image.Image]
) -> LatentCache:
    """Encode the class images and their prompt."""
    ids = uncropped_ids(pipe, images, views=1)
    prompts = [class_images.class_prompt(config.class_noun)] * len(images)
    return encode(pipe, images, prompts, False, not config.train_text_encoder, ids)


def uncropped_ids(pipe: StableDiffusionPipeline, images: Sequence[Image.Image], views: int) -> Tensor | None:
    """Return the time ids (N, views, 6) of images that are not cropped; None if the UNet takes none."""
    if not families.size_conditioned(pipe.unet.config):
        return None
    return uncropped_time_ids(images[0].height, images[0].width).float().expand(len(images), views, -1)


def prompt_notices(config: TrainConfig, pipe: StableDiffusionPipeline, captions: Sequence[str]) -> list[str]:
    """Return notices about captions and sample prompts: text that is cut off, weights that have no effect."""
    notices = []
    for caption in captions:
        if cut := split(families.tokenizer(pipe), caption)[1]:
            notices.append(f"a caption is longer than the text encoder reads; these words are cut off: “{cut}”")
        if without_weights(caption) != caption:
            notices.append(f"prompt weights have no effect in captions; “{caption}” is trained as it is written")
    samples = [Request(text, config.seed) for text in config.sample_texts]
    return list(dict.fromkeys([*notices, *(f"sample prompts: {note}" for note in prompt_notes(pipe, samples))]))
