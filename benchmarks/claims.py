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


END_TO_END = """\
A whole run, from photos to saved adapter, against the DreamBooth loop in benchmarks/plain_dreambooth.py: diffusers and
PEFT without caches of latents or text embeddings. Both start from the same adapter and use the same noise, so their
losses must agree. On toybox the text encoder is trained, too; at the size of Stable Diffusion 1.5 it is frozen, the
steps are measured and the run is computed.

The plain loop is the project's own, not diffusers' script. That script, `examples/dreambooth/train_dreambooth_lora.py`
of diffusers' repository (it needs torchvision), takes the same settings like this, with eight photos in `photos`:

```bash
python -c "import hra_diffusion; hra_diffusion.load_base('toybox').save_pretrained('toybox')"
python train_dreambooth_lora.py --pretrained_model_name_or_path toybox --instance_data_dir photos \\
    --instance_prompt "a photo of a sks toy" --resolution 128 --center_crop --train_batch_size 8 --max_train_steps 80 \\
    --rank 16 --train_text_encoder --learning_rate 2e-3 --lr_warmup_steps 0 --output_dir theirs
hra-diffusion train --config ours.yaml
```

```yaml
# ours.yaml
name: ours
photos: [photos]
class_noun: toy
preset: quick
method: lora
options: {rank: 16}
targets: attention
timestep_bias: 1
text_encoder_lr_scale: 1
lr_scheduler: constant
sample_every: 0
sample_prompts: []
```

The two are about on a par, measured on two days on two cores (PyTorch 2.13, diffusers 0.42.1, PEFT 0.21.2; the script
at commit 58eb52c with its import of torchvision replaced). One day our training phase took 19.3 to 24.9 s and the
script's loop 22 s; our whole process 31 to 37 s with nine sample images, the script's 29 s without. The other day, in
turn and without samples, our process took 31, 37, 38 and 38 s and the script's 41, 42, 43, 45, 47 and 49 s; ours took
95 and 112 s in two more runs, with a load average above 3. Mean losses were 0.244 and 0.241, with other random numbers.
The plain loop took 36 and 39 s where the script's loop took 32 and 34 s."""


CLAIMS = (
    Claim(
        "bench_step",
        "Every method costs what LoRA costs",
        "a step ≤ 1.10 of LoRA's (GPU 1.05, in a CUDA graph)",
        "The time of one optimiser step (forward, loss, backward, clipping, AdamW) with each method, divided by "
        "LoRA's. HRA is also measured with the orthogonality penalty that the Stable Diffusion presets use. On a GPU "
        "a run captures its step in a CUDA graph, and the target applies to captured steps.",
    ),
    Claim(
        "bench_ops",
        "Few operations per layer",
        "HRA ≤ LoRA's, HOFT ≤ 1.6 ×, SHOFT ≤ 2.0 ×",
        "The ATen calls that an adapter adds to the forward and backward pass in bfloat16, per adapted layer, as a "
        "TorchDispatchMode counts them. Without a CUDA graph each call is launched on its own, and small batches wait "
        "for the launches. Views and bare allocations are not counted; the preparation of factors, casts and the "
        "accumulation of gradients are; gradient clipping and the optimiser are not. A fused call may still run "
        "several kernels. The count does not depend on the width of the layers.",
    ),
    Claim(
        "bench_peft",
        "Faster and smaller than PEFT",
        "HRA ≤ 0.40 of the time and memory (GPU 0.15 and 0.3), LoRA ≤ 1.0",
        "The time of one optimiser step and its peak memory against PEFT's implementations of LoRA, HRA, OFT and "
        "BOFT on the same layers. On the CPU each memory figure is the resident memory of a process of its own, which "
        "includes the imported libraries; on a GPU it is the allocated memory. The ratios hold for the PEFT version "
        "named with each measurement. Its HRA builds a dense matrix per layer; a pull request that avoids this was "
        "open when the CPU figures were taken.",
    ),
    Claim(
        "bench_klein",
        "FLUX.2 klein, against PEFT",
        "HRA ≤ 0.40 of the time and memory (GPU 0.15 and 0.3), LoRA ≤ 1.0",
        "As above, on the transformer of FLUX.2 klein, rank 32, with the layers that PEFT's own image benchmark "
        "adapts. On a GPU its settings are the same, too; it lists its HRA at 9,825 s and 44.1 GiB, and its LoRA at "
        "759 s and 10.0 GiB. On the CPU the model has one single block, whose fused projection is adapted, at "
        "full width.",
    ),
    Claim(
        "bench_floor",
        "Close to the frozen UNet's own cost",
        "a step ≤ 1.15 of the frozen UNet's own passes (GPU 0.7, in a CUDA graph)",
        "The floor is a forward pass of the frozen UNet and a backward pass through its activations alone, back "
        "to the first attention: no adapter can train for less. The step of each method, and the trainer's own "
        "step with HRA, are divided by it. On a GPU the steps are captured in CUDA graphs and the floor is not: the "
        "ratio tells what a graph saves at batch 1. The trainer's step there may take 1.05 × the captured step alone.",
    ),
    Claim(
        "bench_end_to_end",
        "Faster end to end with the same losses",
        "toybox ≥ 1.0 × and SD 1.5 ≥ 1.4 × a plain diffusers + PEFT loop",
        END_TO_END,
    ),
    Claim(
        "bench_preservation",
        "Preserves the class without class images",
        "likeness ≥ 0.97, drift and seconds ≤ 1.0 of those with class images",
        "The base model's own output as the target of prior preservation, against class images and against none. "
        "Likeness is the CLIP similarity of pictures to the photos, drift the CLIP distance between pictures of the "
        "class with and without the adapter, from the same noise. Both are by toybox's own CLIP model, a proxy.",
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
        "bench_fit",
        "Keeps to a memory limit",
        "peak ≤ --memory-limit",
        "The peak memory of a short run with `--memory-limit`, the prediction that chose its settings, and the "
        "settings that were changed. The prediction adds an estimate for memory outside of tensors, which a GPU's "
        "allocated memory does not contain.",
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
        "bench_serving",
        "Many users' adapters in one batch",
        "64 adapters ≥ 0.85 of one adapter's pictures per second and ≥ 1.5 of diffusers'; memory ≤ 1.2 of the files'",
        "Pictures per second and latencies of the engine of `hra-diffusion serve` while clients wait, by the number of "
        "distinct adapters, Zipf-distributed; against diffusers with `set_adapters` per request, and against batches "
        "of one adapter. Memory is the growth of the process by the prepared adapters. Pictures must equal those drawn "
        "alone.",
    ),
    Claim(
        "bench_inference",
        "Inference at the base model's speed",
        "live ≤ 1.05 of the base (GPU 1.02, in a CUDA graph), merged ≤ 1.01",
        "One denoising step with classifier-free guidance with a live adapter of each method, and with a merged "
        "one, divided by the base model's.",
    ),
    Claim(
        "bench_generate",
        "As fast as diffusers' pipeline",
        "live ≤ 1.05 of the base (GPU 1.02); diffusers' pipeline ≥ 0.95 of our time (GPU 1.5)",
        "One image at a time, prompt to image, with the base model, with live adapters, and with diffusers' own "
        "pipeline, without an adapter and with PEFT's LoRA. Prompt, scheduler, steps and guidance are the same. On a "
        "GPU our generation captures the UNet in a CUDA graph.",
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
        "bench_prodigy",
        "Prodigy finds the learning rate",
        "loss ≤ 1.02 × AdamW's at the preset's rate, for LoRA and HRA",
        "Training on toybox with Prodigy, which is given no learning rate, and with AdamW at the preset's: the highest "
        "learning rate and the loss at the end, on the same batches. Reflections do not depend on the length of their "
        "vectors: from vectors four times as long, the rate that Prodigy finds must be higher.",
    ),
    Claim(
        "bench_page",
        "A page for many runs and many people",
        "50 idle browsers ≤ 5 % of a core; under load no error, fair turns",
        "An output folder with 1,000 runs of four checkpoints each, served to idle browsers; then visitors that "
        "follow the page and reload it every 20 seconds, while others generate images on toybox one after another, "
        "all on the same cores. A poll is the question for changes that an open page asks every two seconds.",
    ),
    Claim(
        "bench_start",
        "Starts quickly",
        "--help ≤ 0.6 s without torch, page ≤ 8 s, first image ≤ 5 s later",
        "What a user waits for: the start of the command line, of the page, and of the first image on it. Each is "
        "measured in a fresh process, with the program's files in the system's cache.",
    ),
)
