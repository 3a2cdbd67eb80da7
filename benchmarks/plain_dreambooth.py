"""A plain DreamBooth loop with diffusers and PEFT that caches nothing. It is not diffusers' own script.

It starts from the same adapter as our trainer and uses the same random numbers, so that losses can be compared.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor, nn

from app.benchmarking.workloads import weight_sharing_copy
from benchmarks.models import PEFT_CONFIGS
from benchmarks.steps import SUBJECT
from hra_diffusion.adapters import attachment
from training import objective
from training.config import TrainConfig
from training.rank_matching import layers_to_adapt

PEFT_NAMES = {"lora": "PEFT LoRA", "hra": "PEFT HRA"}
"""Methods that PEFT implements with the same parameters."""
PEFT_PARAMETERS = {
    "lora": {"lora_A.default.weight": "down", "lora_B.default.weight": "up"},
    "hra": {"hra_u.default": "right.u"},
}
"""Names of a layer's parameters in PEFT, and ours."""


def plain_steps(pipe: Any, config: TrainConfig, path: Path) -> Iterator[float]:
    """Train step by step: read photos, encode them and their caption, predict noise, optimise.

    Yields each step's loss and saves the adapter to ``path`` after the last.
    """
    parameters = add_peft_adapter(pipe, config)
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    for step in range(config.steps):
        latents, text = encode_batch(pipe, config, step)
        generator, scheduler = objective.seeded_generator(config.seed, "noise", step), pipe.scheduler
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        total = scheduler.config.num_train_timesteps
        timesteps = objective.sample_timesteps(len(latents), total, config, generator).to(latents.device)
        v_prediction = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if v_prediction else noise
        predicted = pipe.unet(scheduler.add_noise(latents, noise, timesteps), timesteps, text).sample
        loss = F.mse_loss(predicted.float(), target.float())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()
    save_file(dict(parameters), path)


def add_peft_adapter(pipe: Any, config: TrainConfig) -> dict[str, nn.Parameter]:
    """Add PEFT's adapter to the models that a run trains, with the initial values of ours; return its parameters."""
    parameters = {}
    for model in (pipe.unet, pipe.vae, pipe.text_encoder):
        model.requires_grad_(False)
    for number, (model, paths) in enumerate(layers_to_adapt(config, pipe)):
        ours = weight_sharing_copy(model)
        attachment.attach(ours, config.method, config.options, targets=paths, seed=config.seed + number)
        peft = PEFT_CONFIGS[PEFT_NAMES[config.method]](config.options["rank"])
        peft.target_modules = set(paths)
        model.add_adapter(peft)
        for path, layer in attachment.adapter_layers(ours, "default").items():
            for peft_name, name in PEFT_PARAMETERS[config.method].items():
                model.get_submodule(path).get_parameter(peft_name).data.copy_(layer.get_parameter(name))
        parameters |= {f"{number}.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    return parameters


def encode_batch(pipe: Any, config: TrainConfig, step: int) -> tuple[Tensor, Tensor]:
    """Return the latents and text embeddings of a batch, from the photos' files and the caption."""
    photos, size = sorted(SUBJECT.glob("*.png")), config.batch_size
    indices = objective.batch_indices(len(photos), size, step, config.seed)
    generator = objective.seeded_generator(config.seed, "photos", "latents", step)
    flips = torch.randint(2, (size,), generator=generator).tolist()
    pixels = torch.stack(
        [read_photo(photos[i], config.resolution, flip) for i, flip in zip(indices, flips, strict=True)]
    )
    with torch.no_grad():
        posterior = pipe.vae.encode(pixels.to(pipe.device, pipe.vae.dtype)).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
    latents = (posterior.mean + posterior.std * noise) * pipe.vae.config.scaling_factor
    captions = [config.caption.replace("{subject}", config.subject)] * size
    tokens = pipe.tokenizer(captions, padding="max_length", max_length=pipe.tokenizer.model_max_length,
                            truncation=True, return_tensors="pt")  # fmt: skip
    return latents, pipe.text_encoder(tokens.input_ids.to(pipe.device))[0]


def read_photo(photo: Path, resolution: int | None, flip: int) -> Tensor:
    """Read a photo as diffusers' script does: center-cropped, mirrored if ``flip``, in [−1, 1], (3, H, W)."""
    with Image.open(photo) as image:
        square = ImageOps.fit(image.convert("RGB"), (resolution or image.width,) * 2, Image.Resampling.LANCZOS)
    array = np.asarray(ImageOps.mirror(square) if flip else square, dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)
