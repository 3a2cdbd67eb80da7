"""Set up the state of a run: caches, adapter, optimiser."""

from collections.abc import Sequence

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
from training.data.captions import final_captions
from training.data.dataset import Dataset
from training.data.latent_cache import LatentCache, encode, photo_time_ids
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
    captions = final_captions(config, {photo.path: photo.caption for photo in dataset.photos})
    timer.emit(captions)
    texts = list(captions.captions.values())
    warnings = [warning.message for warning in dataset.warnings]
    for message in [*warnings, *prompt_notices(config, pipe, texts), *optimizer_notices(config)]:
        timer.emit(Notice(message))
    generated: list[Image.Image] = []
    if config.prior_loss_weight:
        with timer.phase("class images"), accelerator.main_process_first():
            folder, size = run.folder.parent / ".cache" / "class-images", dataset.photos[0].image.width
            arguments = (config.class_noun, config.num_class_images, size, folder, config.sample_batch_size)
            generated = list(class_images.load_class_images(pipe, *arguments))
    with timer.phase("cache"):
        photo_cache = encode_photos(config, pipe, dataset, texts)
        class_cache = encode_class_images(config, pipe, generated) if generated else None
    offload(pipe, config)
    parameters = add_adapter(config, pipe)
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
        config, run, accelerator, timer, pipe, denoiser, parameters, optimizer, photo_cache, class_cache, averages,
        fingerprint, dataset, noise.of(pipe.scheduler), processes,
    )  # fmt: skip


def encode_photos(
    config: TrainConfig, pipe: StableDiffusionPipeline, dataset: Dataset, captions: Sequence[str]
) -> LatentCache:
    """Encode the photos, with their mirror images if ``config.flip`` is set, and their captions."""
    images = [photo.image for photo in dataset.photos]
    ids = uncropped_ids(pipe, images, views=1 + config.flip)
    if ids is not None and config.size_conditioning:
        ids = torch.stack([photo_time_ids(photo, config.flip) for photo in dataset.photos])
    return encode(pipe, images, captions, config.flip, not config.runs_text_encoder, ids)


def encode_class_images(
    config: TrainConfig, pipe: StableDiffusionPipeline, images: Sequence[Image.Image]
) -> LatentCache:
    """Encode the class images and their prompt."""
    ids = uncropped_ids(pipe, images, views=1)
    prompts = [class_images.class_prompt(config.class_noun)] * len(images)
    return encode(pipe, images, prompts, False, not config.runs_text_encoder, ids)


def uncropped_ids(pipe: StableDiffusionPipeline, images: Sequence[Image.Image], views: int) -> Tensor | None:
    """Return the time ids (N, views, 6) of images that are not cropped; None if the UNet takes none."""
    if not families.size_conditioned(pipe.unet.config):
        return None
    return uncropped_time_ids(images[0].width).float().expand(len(images), views, -1)


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
