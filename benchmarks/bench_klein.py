"""FLUX.2 klein: time of an optimiser step and peak memory of HRA and LoRA, against PEFT's implementations.

    python -m benchmarks.bench_klein [--device cuda] [--bases klein] [--side 32] [--rounds 3]

On a GPU with the settings of PEFT's own benchmark (method_comparison/image-gen): 512 pixels, which are 32 × 32
positions, batch 2, rank 32. There PEFT's HRA takes 9,825 s and 44.1 GiB, and its LoRA 759 s and 10.0 GiB. On the CPU
one single block at full width, and smaller images: a double block's feed-forward takes PEFT's HRA 11 GB per layer.
All adapt the layers that PEFT's benchmark adapts.
"""

from benchmarks.bench_peft import OURS, measure
from benchmarks.options import parse_options

METHODS = (*OURS, "PEFT LoRA", "PEFT HRA")


def main() -> None:
    cpu = {"side": 8, "rounds": 3, "batch_size": 1, "bases": "shallow-klein", "minutes": 1.0}
    cuda = {"side": 32, "dtype": "bfloat16", "rounds": 5, "batch_size": 2, "bases": "klein"}
    measure(parse_options(__doc__, cpu, cuda, rank=32), METHODS)


if __name__ == "__main__":
    main()
