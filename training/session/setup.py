"""Set up the state of a run: caches, adapter, optimiser."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from hra_diffusion import pipeline
from hra_diffusion.adapters.fingerprint import adapter_fingerprint
from hra_diffusion.generation.requests import Request, prompt_notes
from hra_diffusion.models import families
from hra_diffusion.models.families.sdxl import uncropped_time_ids
from hra_diffusion.models.prompts import without_weights
from training.config import TrainConfig
from training.data import class_images
from training.data.buckets import Size, grouped
from training.data.caption_variants import CaptionRows, variants
from training.data.captions import class_caption, class_prompt, final_captions
from training.data.concepts import epoch
from training.data.dataset import Dataset
from training.data.latent_cache import LatentCache, encode, encode_captions, mask_weights, photo_time_ids
from training.data.photo import Photo
from training.data.validation_photo import held_out_photo
from training.init_adapter import load_init_adapter
from training.runs.events import Notice
from training.runs.run_folder import Run
from training.session.devices import offload
from training.session.model import Denoiser, add_adapter, compile_blocks, enable_gradient_checkpointing
from training.session.optimizer import make_optimizer, optimizer_notices
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
    texts = final_texts(config, pipe, dataset, timer)
    trained, apart = hold_out(config, Captioned(dataset.photos, texts))
    buckets = buckets_of(trained)
    generated: list[dict[str, list[Image.Image]]] = []
    if config.uses_class_images:
        with timer.phase("class images"), accelerator.main_process_first():
            generated = load_class_images(config, pipe, buckets, run.folder.parent / ".cache" / "class-images")
    with timer.phase("cache"):
        photos = [encode_photos(config, pipe, bucket) for bucket in buckets]
        held_out = encode_photos(config, pipe, apart) if apart else None
        class_caches = [encode_class_images(config, pipe, images) for images in generated]
        class_captions = []
        if config.uses_base_output:
            class_captions = [with_class_captions(config, pipe, cache) for cache in photos]
    offload(pipe, config)
    resumed, init_sha256 = bool(run.checkpoints()), ""
    parameters = add_adapter(config, pipe, start=not (resumed or config.init_adapter))
    if resumed:
        init_sha256 = identity.init_sha256 if (identity := run.identity) else ""
    elif config.init_adapter:
        init_sha256 = load_init_adapter(config.init_adapter, pipe, parameters, timer.emit)
    denoiser = Denoiser(pipe, config.runs_text_encoder).train()
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
        config, run, accelerator, timer, pipe, denoiser, parameters, optimizer, photos, class_caches,
        class_captions, held_out, averages, fingerprint, dataset, families.noise_process(pipe), processes, init_sha256,
    )  # fmt: skip


def final_texts(config: TrainConfig, pipe: StableDiffusionPipeline, dataset: Dataset, timer: PhaseTimer) -> list[str]:
    """Return the caption of each photo for training. Emits them, and notices about photos and captions."""
    given = {photo.path: photo.caption for photo in dataset.photos}
    captions = final_captions(config, given, {photo.path: photo.concept for photo in dataset.photos})
    timer.emit(replace(captions, coverage=dataset.coverage))
    texts = list(captions.captions.values())
    warnings = [warning.message for warning in dataset.warnings]
    for message in [*warnings, *prompt_notices(config, pipe, texts), *optimizer_notices(config)]:
        timer.emit(Notice(message))
    return texts


class Captioned(NamedTuple):
    """Photos, and the caption of each."""

    photos: Sequence[Photo]
    captions: Sequence[str]

    def subset(self, indices: Sequence[int]) -> "Captioned":
        """Return the photos of these numbers with their captions."""
        return Captioned([self.photos[i] for i in indices], [self.captions[i] for i in indices])


def hold_out(config: TrainConfig, given: Captioned) -> tuple[Captioned, Captioned | None]:
    """Return the photos for training, and the one for validation: None unless ``config`` holds one out."""
    if (held_out := held_out_photo(given.photos, config.validation, config.seed)) is None:
        return given, None
    apart = [photo is held_out for photo in given.photos].index(True)
    return given.subset([i for i in range(len(given.photos)) if i != apart]), given.subset([apart])


def buckets_of(given: Captioned) -> list[Captioned]:
    """Return the photos by the size of their training image, one bucket a size."""
    return [given.subset(group) for group in grouped([photo.image.size for photo in given.photos])]


def load_class_images(
    config: TrainConfig, pipe: StableDiffusionPipeline, buckets: Sequence[Captioned], folder: Path
) -> list[dict[str, list[Image.Image]]]:
    """Return class images by class noun for each bucket, of its size.

    A noun has ``config.num_class_images`` in all, up to rounding, in proportion to its photos in each bucket.
    """
    nouns = list(dict.fromkeys(subject.class_noun for subject in config.subjects))
    shares = [Counter(config.subjects[photo.concept].class_noun for photo in bucket.photos) for bucket in buckets]
    totals = sum(shares, Counter[str]())

    def load(noun: str, share: int, size: Size) -> list[Image.Image]:
        count = math.ceil(config.num_class_images * share / totals[noun])
        return list(class_images.load_class_images(pipe, noun, count, size, folder, config.sample_batch_size))

    return [
        {noun: load(noun, share[noun], bucket.photos[0].image.size) for noun in nouns if share[noun]}
        for share, bucket in zip(shares, buckets, strict=True)
    ]


def encode_photos(config: TrainConfig, pipe: StableDiffusionPipeline, bucket: Captioned) -> LatentCache:
    """Encode the photos of a bucket with their masks, their mirror images if ``config.flip`` is set, and captions.

    All variants of the captions are encoded.
    """
    images, flip = [photo.image for photo in bucket.photos], config.flip
    ids = uncropped_ids(pipe, images, views=1 + flip)
    if ids is not None and config.size_conditioning:
        ids = torch.stack([photo_time_ids(photo, flip) for photo in bucket.photos])
    width, height = (side // families.latent_pixels(pipe) for side in images[0].size)
    weights = mask_weights(
        [photo.mask for photo in bucket.photos], (width, height), flip, config.unmasked_weight,
        config.normalize_masked_area_loss,
    )  # fmt: skip
    rows = variants(bucket.captions, config)
    cache = encode(pipe, images, rows.texts, flip, not config.runs_text_encoder, ids, weights)
    samples = epoch([photo.concept for photo in bucket.photos], config)
    return replace(cache, captions=rows, epoch=torch.tensor(samples))


def with_class_captions(config: TrainConfig, pipe: StableDiffusionPipeline, photos: LatentCache) -> LatentCache:
    """Return the cache of the photos with the class noun in place of the subject in every text, and no empty text."""
    rows = cast(CaptionRows, photos.captions)
    texts = [class_caption(text, config.subjects) for text in rows.texts]
    text = encode_captions(pipe, texts, not config.runs_text_encoder)
    return replace(photos, text=text, captions=replace(rows, texts=texts, dropout=0.0))


def encode_class_images(
    config: TrainConfig, pipe: StableDiffusionPipeline, images: Mapping[str, Sequence[Image.Image]]
) -> LatentCache:
    """Encode class images by class noun, and their prompts."""
    together = [image for own in images.values() for image in own]
    ids = uncropped_ids(pipe, together, views=1)
    prompts = [class_prompt(noun) for noun, own in images.items() for _ in own]
    return encode(pipe, together, prompts, False, not config.runs_text_encoder, ids)


def uncropped_ids(pipe: StableDiffusionPipeline, images: Sequence[Image.Image], views: int) -> Tensor | None:
    """Return the time ids (N, views, 6) of images that are not cropped; None if the denoiser takes none."""
    if not families.size_conditioned(families.denoiser(pipe).config):
        return None
    return uncropped_time_ids(images[0].height, images[0].width).float().expand(len(images), views, -1)


def prompt_notices(config: TrainConfig, pipe: StableDiffusionPipeline, captions: Sequence[str]) -> list[str]:
    """Return notices about captions and sample prompts: text that is cut off, weights that have no effect."""
    notices = []
    for caption in captions:
        if cut := families.cut_off(pipe, caption):
            notices.append(f"a caption is longer than the text encoder reads; these words are cut off: “{cut}”")
        if without_weights(caption) != caption:
            notices.append(f"prompt weights have no effect in captions; “{caption}” is trained as it is written")
    samples = [Request(text, config.seed) for text in config.sample_texts]
    return list(dict.fromkeys([*notices, *(f"sample prompts: {note}" for note in prompt_notes(pipe, samples))]))
