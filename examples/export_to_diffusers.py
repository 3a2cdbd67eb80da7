"""Export an adapter as a LoRA file and load it in plain diffusers: the images are the same."""

import argparse
from pathlib import Path

import torch

import hra_diffusion as hra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path, help="an adapter file")
    parser.add_argument("--base", default="toybox")
    parser.add_argument("--output", type=Path, default=Path("outputs/exported"))
    given = parser.parse_args()

    pipe = hra.load_base(given.base)
    info = hra.load(pipe, given.adapter)
    exported = hra.export(pipe, info.name, "diffusers", given.output, info=info)
    with hra.frozen(pipe):
        ours = generate(pipe, info.subject)
    hra.unload(pipe, info.name)  # from here on it is a plain diffusers pipeline

    pipe.load_lora_weights(str(exported.path))
    theirs = generate(pipe, info.subject)
    print(f"{exported.path}: largest difference of a pixel {(ours - theirs).abs().max():.1e}")


def generate(pipe, subject: str) -> torch.Tensor:
    """One image as a tensor, by the pipeline's own call."""
    noise = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe(f"a {subject}", num_inference_steps=10, generator=noise, output_type="np").images)


if __name__ == "__main__":
    main()
