"""The claims that the benchmarks test, in the order of docs/benchmarks.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A claim about speed or memory, its target, and the benchmark that tests it.

    ``name``: module in benchmarks/. ``about``: what is measured and how, as a paragraph of Markdown.
    """

    name: str
    title: str
    target: str
    about: str


CLAIMS = (
    Claim(
        "bench_step",
        "Every method costs what LoRA costs",
        "a step ≤ 1.10 of LoRA's",
        "The time of one optimiser step (forward, loss, backward, clipping, AdamW) with each method, divided by "
        "LoRA's. HRA is also measured with the orthogonality penalty that the Stable Diffusion presets use.",
    ),
    Claim(
        "bench_peft",
        "Faster and smaller than PEFT",
        "HRA ≤ 0.40 of the time (GPU 0.2) and memory, LoRA ≤ 1.0",
        "The time of one optimiser step and its peak memory against PEFT's implementations of LoRA, HRA, OFT and "
        "BOFT on the same layers. Each memory figure comes from a process of its own; on the CPU it is the "
        "resident memory, which includes the imported libraries.",
    ),
    Claim(
        "bench_floor",
        "Close to the frozen UNet's own cost",
        "a step ≤ 1.15 of the frozen UNet's own passes",
        "The floor is a forward pass of the frozen UNet and a backward pass through its activations alone, back "
        "to the first attention: no adapter can train for less. The step of each method, and the trainer's own "
        "step with HRA, are divided by it.",
    ),
    Claim(
        "bench_end_to_end",
        "Faster end to end with the same losses",
        "≥ 1.5 × a plain diffusers + PEFT loop",
        "A whole run, from photos to saved adapter, against a DreamBooth loop in the style of diffusers' script "
        "with PEFT, which caches neither latents nor text embeddings. Both start from the same adapter and use "
        "the same noise, so their losses must agree. At the size of Stable Diffusion 1.5 the steps are measured "
        "and the run is computed.",
    ),
    Claim(
        "bench_memory",
        "Low memory",
        "SD 1.5 at 512 px ≤ 4.0 GiB, SDXL at 1024 px ≤ 10 GiB",
        "Peak memory of training steps: UNet, adapter, gradients and optimiser state, for full-size UNets with "
        "random weights, each case in a process of its own. On a GPU it is the allocated memory, on the CPU the "
        "resident memory.",
    ),
    Claim(
        "bench_side_by_side",
        "Several adapters in one batch",
        "images/s ≥ 1.0 × one after another (GPU 2), equal",
        "Six adapters and the base model generate four prompts each in shared batches, against one adapter after "
        "another and one image after another. The images must be the same up to one grey level.",
    ),
    Claim(
        "bench_switching",
        "Fast switching",
        "activate ≤ 10 ms, load ≤ 0.5 of diffusers'",
        "The time to activate another adapter that is already loaded, and to load one from disk, against "
        "diffusers' `set_adapters` and `load_lora_weights`. The first load also fingerprints the base model and "
        "has its own row.",
    ),
    Claim(
        "bench_inference",
        "Inference at the base model's speed",
        "live ≤ 1.05 of the base, merged ≤ 1.01",
        "One denoising step with classifier-free guidance with a live adapter of each method, and with a merged "
        "one, divided by the base model's.",
    ),
    Claim(
        "bench_growth",
        "Scales linearly at worst",
        "at most linear in rank, flat in adapters loaded and photos",
        "How step time and memory grow with the rank, the number of loaded adapters, the number of photos and the "
        "resolution. Growth in rank is measured on what the adapter adds to the frozen UNet's own passes.",
    ),
    Claim(
        "bench_contention",
        "Shares a CPU",
        "alone ≤ 1.10 of the default, two runs ≤ 2, generate + train ≥ 0.4 each",
        "The pace of processes that share the cores: two training runs, a run beside image generation, and a run "
        "beside another busy program, each divided by its pace alone. Rows named *default* use GNU OpenMP's "
        "default spin count and all cores in every process.",
    ),
    Claim(
        "bench_start",
        "Starts quickly",
        "--help ≤ 0.6 s without torch, page ≤ 8 s, first image ≤ 5 s later",
        "What a user waits for: the start of the command line, of the page, and of the first image on it. Each is "
        "measured in a fresh process, with the program's files in the system's cache.",
    ),
)
