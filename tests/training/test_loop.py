"""Training the whole way on a tiny real base: what is kept, what goes on exactly, what stops cleanly."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT, StopAfter, relative, save_photos, tiny_pipe, weights
from diffusers import EulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import hra_diffusion
from hra_diffusion.adapters import adapter_file, attachment, registry
from hra_diffusion.adapters.quantization import quantise
from hra_diffusion.errors import Note
from training import config as configs
from training.data.class_images import load_class_images
from training.data.dataset import load_dataset
from training.errors import TrainingError
from training.loop import train
from training.runs.events import Checkpoint, Finished, Notice, Phase, Sample, Step
from training.runs.run_folder import Run, RunError, find, photos_of, samples_of


@pytest.mark.parametrize("method", registry.method_names())
def test_photos_in_an_adapter_out(settings, tmp_path, base_folder, method):
    heard = []
    adapter = train(settings(method=method), tmp_path, [heard.append])
    assert adapter == tmp_path / "Rex" / "Rex.safetensors"
    info = adapter_file.read_info(adapter)
    assert (info.method, info.trigger, info.class_noun, info.base) == (method, "sks", "dog", "tiny-sd")
    pipe = hra_diffusion.load_base(str(base_folder), "cpu")
    hra_diffusion.load(pipe, adapter)
    few = hra_diffusion.Settings(steps=3)
    base, taught = (hra_diffusion.generate(pipe, "a sks dog", mix, settings=few)[0] for mix in ({}, {"Rex": 1.0}))
    assert np.asarray(base).tolist() != np.asarray(taught).tolist()

    phases = [event.name for event in heard if isinstance(event, Phase)]
    assert phases[:4] == ["load base", "read photos", "class images", "cache"]
    assert [event.step for event in heard if isinstance(event, Step)] == [1, 2, 3, 4]
    assert [event.step for event in heard if isinstance(event, Sample)] == [0, 2, 4]
    drawn = {(adapter.parent / "samples" / f"{step:06}-0.png").read_bytes() for step in (0, 2, 4)}
    assert len(drawn) == 3, "each round shows the adapter as it then is"
    assert [event.step for event in heard if isinstance(event, Checkpoint)] == [2, 4]
    assert isinstance(heard[-1], Finished) and set(heard[-1].phases) == {*phases}


def test_what_the_base_predicts_can_be_said(settings, tmp_path, base_folder):
    """It decides the target of training and the class images, and the adapter says it."""
    few = {"steps": 1, "num_class_images": 1, "sample_prompts": []}
    plain = train(settings(**few), tmp_path)
    velocity = train(settings(**few, name="V", prediction_type="v_prediction", rescale_zero_snr=True), tmp_path)
    assert relative(weights(velocity), weights(plain)) > 1e-3
    kept = [adapter_file.read_info(file) for file in (plain, velocity)]
    assert [(info.prediction_type, info.zero_snr) for info in kept] == [("epsilon", False), ("v_prediction", True)]
    assert len(list((tmp_path / ".cache" / "class-images").iterdir())) == 2


def test_training_on_a_distilled_base_warns(settings, tmp_path):
    pipe, heard = tiny_pipe(), []
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    train(settings(steps=1, num_class_images=1, sample_prompts=[]), tmp_path, [heard.append], pipe=pipe)
    said = [event.message for event in heard if isinstance(event, Notice)]
    assert any("this base looks distilled to generate in a few steps" in message for message in said)


def test_what_is_not_certain_of_a_base_is_a_notice(settings, tmp_path, monkeypatch):
    def load_base(*given):
        warnings.warn("it does not say what it predicts", Note, stacklevel=1)
        return tiny_pipe()

    heard = []
    monkeypatch.setattr("hra_diffusion.models.loading.load_base", load_base)
    train(settings(steps=1, num_class_images=1, sample_prompts=[]), tmp_path, [heard.append])
    assert Notice("it does not say what it predicts") in heard


def test_the_runs_folder(settings, tmp_path, base_folder):
    config = settings()
    train(config, tmp_path)
    run = find(tmp_path, "Rex")
    assert run is not None and run.config == config and run.state["status"] == "finished"
    assert sorted(p.name for p in (run.folder / "samples").iterdir()) == [
        "000000-0.png",
        "000002-0.png",
        "000004-0.png",
    ]
    lines = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert lines[-1]["event"] == "finished" and sum(line["event"] == "step" for line in lines) == 4
    assert not list(tmp_path.rglob("*.tmp*")), "nothing half-written is left"
    pipe = hra_diffusion.load_base(str(base_folder), "cpu")
    for checkpoint in run.checkpoints():
        hra_diffusion.load(pipe, checkpoint / "adapter.safetensors", checkpoint.name)
    assert hra_diffusion.loaded(pipe) == ["000002", "000004"], "every checkpoint is a usable adapter"


def test_an_adapter_or_a_checkpoint_finds_the_photos_it_learned_from(settings, tmp_path):
    config, run = settings(crop="letterbox"), Run(tmp_path / "Rex")
    configs.write(config, run.folder / "config.yaml")
    seen = [photo.image.tobytes() for photo in load_dataset(config.photos, 64, "letterbox").photos]
    for adapter in (run.adapter, run.checkpoint(2) / "adapter.safetensors"):
        assert [image.tobytes() for image in photos_of(adapter, 64)] == seen
    assert photos_of(tmp_path / "loose.safetensors", 64) == []


def test_transformers_before_5_23_checkpoints_activations_by_an_older_name(settings, tmp_path, monkeypatch):
    for verb in ("enable", "disable"):
        own = getattr(PreTrainedModel, f"_activation_checkpointing_{verb}")
        monkeypatch.setattr(PreTrainedModel, f"gradient_checkpointing_{verb}", own)
        monkeypatch.delattr(PreTrainedModel, f"activation_checkpointing_{verb}")
    assert train(settings(gradient_checkpointing=True), tmp_path).is_file()


def test_the_text_encoder_learns_at_its_own_rate(settings, tmp_path):
    """AdamW's first step is as long as the rate, wherever a gradient is."""
    config = settings(method="lora", steps=1, learning_rate=0.01, text_encoder_lr_scale=0.1, lr_scheduler="constant",
                      weight_decay=0, sample_prompts=[])  # fmt: skip
    learned = load_file(train(config, tmp_path))
    up = {key: float(value.abs().max()) for key, value in learned.items() if key.endswith(".up")}
    steps = {(key.split(".")[0], round(step, 4)) for key, step in up.items()}
    assert steps == {("unet", 0.01), ("text_encoder", 0.001)}


def test_the_base_is_never_changed(settings, tmp_path, base_folder):
    before = {path: path.read_bytes() for path in base_folder.rglob("*.safetensors")}
    train(settings(), tmp_path)
    assert {path: path.read_bytes() for path in base_folder.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "method": "lora",
            "ema_decay": 0.9,
            "lr_scheduler": "linear",
            "lr_warmup_steps": 2,
            "text_encoder_lr_scale": 0.3,
        },
        {"method": "shoft", "gradient_accumulation_steps": 2, "train_text_encoder": False, "prior_loss_weight": 0},
    ],
    ids=["hra", "lora-ema", "shoft-accumulation"],
)
def test_a_stopped_run_goes_on_bit_for_bit(settings, tmp_path, changes):
    config = settings(steps=5, checkpoint_every=100, sample_every=0, **changes)
    whole = weights(train(config, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(3)])
    run = find(tmp_path / "parts", "Rex")
    assert run is not None and run.state["status"] == "stopped" and run.state["step"] == 3
    assert run.checkpoints()[-1].name == "000003", "the last step is kept"
    resumed = train(config, tmp_path / "parts", resume=True)
    assert torch.equal(weights(resumed), whole)
    first, both = (adapter_file.read_info(path).training["seconds"]["train"]
                   for path in (run.checkpoint(3) / "adapter.safetensors", resumed))  # fmt: skip
    assert 0 < first < both, "the seconds of both sessions count"


def test_a_run_whose_every_step_was_skipped_so_far_goes_on(settings, tmp_path):
    """As float16's loss scaler skips steps at the start: the optimiser has no moments yet."""
    config = settings(steps=5, checkpoint_every=100, sample_every=0)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, [StopAfter(2)])
    (kept,) = tmp_path.glob("Rex/checkpoints/*/training.safetensors")
    save_file({key: value for key, value in load_file(kept).items() if not key.startswith("moment/")}, kept)
    assert torch.isfinite(weights(train(config, tmp_path, resume=True))).all()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(settings, tmp_path):
    config = settings(steps=6, sample_every=0)
    whole = weights(train(config, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(5)])
    newest = tmp_path / "parts" / "Rex" / "checkpoints" / "000005" / "training.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    heard = []
    assert torch.equal(weights(train(config, tmp_path / "parts", [heard.append], resume=True)), whole)
    assert any(isinstance(event, Notice) and "000005" in event.message for event in heard)


def test_what_captions_and_sample_prompts_lose_is_said_once(settings, tmp_path):
    photos = save_photos(tmp_path, 1)
    (photos / "0.txt").write_text("a (sks:1.3) dog in the deep snow under two stars")
    heard = []
    sample = "a {subject} and a blue cat in the snow"
    train(settings(photos=[str(photos)], sample_prompts=[sample], steps=2), tmp_path, [heard.append])
    cut, literal, apart = [event.message for event in heard if isinstance(event, Notice)][-3:]
    assert "are cut off: “snow under two stars”" in cut
    assert "prompt weights have no effect in captions" in literal and "sample prompts" in apart and "the snow”" in apart


def test_an_adapter_that_no_checkpoint_tells_of_is_not_overwritten(settings, tmp_path):
    """One from elsewhere, or a finished one whose checkpoints were deleted."""
    adapter = tmp_path / "Rex" / "Rex.safetensors"
    adapter.parent.mkdir()
    adapter.write_bytes(b"somebody's")
    for resume in (False, True):
        with pytest.raises(RunError, match="is there already; take another --name"):
            train(settings(), tmp_path, resume=resume)
    assert adapter.read_bytes() == b"somebody's"


def test_a_run_that_starts_over_has_its_own_samples_and_log(settings, tmp_path):
    config = settings(sample_prompts=["a {subject}", "a red {subject}"], prior_loss_weight=0)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, [StopAfter(1)])
    run = Run(tmp_path / "Rex")
    shutil.rmtree(run.folder / "checkpoints")
    train(settings(prior_loss_weight=0), tmp_path)
    assert {step: len(files) for step, files in run.samples().items()} == {0: 1, 2: 1, 4: 1}
    assert samples_of(run.adapter) == [run.sample(4, 0)]
    assert samples_of(run.checkpoint(3) / "adapter.safetensors") == [run.sample(2, 0)], "none drawn after it"
    assert samples_of(tmp_path / "elsewhere.safetensors") == []
    said = [json.loads(line)["event"] for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert said.count("step") == 4 and "stopped" not in said


def test_other_photos_are_another_run(settings, tmp_path, photos):
    own = shutil.copytree(photos, tmp_path / "photos")
    config = settings(photos=[str(own)])
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "out", [StopAfter(3)])
    (own / "0.txt").write_text("another caption")
    with pytest.raises(RunError, match=r"photos or captions .* have changed"):
        train(config, tmp_path / "out", resume=True)


def test_a_pipeline_already_held_can_be_taught(settings, tmp_path):
    pipe = tiny_pipe()
    adapter = train(settings(gradient_checkpointing=True), tmp_path, pipe=pipe)
    assert hra_diffusion.active(pipe) == {"Rex": 1.0} and adapter_file.read_info(adapter).base == "tiny"
    assert not pipe.unet.training and not pipe.text_encoder.training and not pipe.unet.is_gradient_checkpointing


def test_the_same_seed_gives_the_same_weights(settings, tmp_path):
    first, again, other = (
        weights(train(settings(seed=seed, sample_every=0), tmp_path / str(i))) for i, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_finished_run_is_left_alone(settings, tmp_path):
    adapter = train(settings(), tmp_path)
    stamp, heard = adapter.stat().st_mtime_ns, []
    assert train(settings(), tmp_path, [heard.append], resume=True) == adapter
    assert adapter.stat().st_mtime_ns == stamp and not heard


def test_two_runs_of_one_name(settings, tmp_path):
    train(settings(), tmp_path)
    with pytest.raises(RunError, match="exists already; go on with it by --resume, or take another --name"):
        train(settings(), tmp_path)
    with pytest.raises(RunError, match="was started with another steps, learning_rate"):
        train(settings(steps=9, learning_rate=1e-3), tmp_path, resume=True)


def test_a_run_that_is_going_on_is_not_joined(settings, tmp_path):
    def second(event):
        if isinstance(event, Step) and event.step == 1:
            with pytest.raises(RunError, match="being trained by another process"):
                train_elsewhere(settings(), tmp_path)

    train(settings(), tmp_path, [second])


def train_elsewhere(config, output):
    """Resume from another process; its error is raised here."""
    code = (
        "import sys, pathlib; from training import config; from training.loop import train\n"
        "train(config.read(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]), resume=True)"
    )
    configs.write(config, output / "other.yaml")
    command = [sys.executable, "-c", code, str(output / "other.yaml"), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RunError(done.stderr.strip().splitlines()[-1])


def test_no_run_uses_an_attention_that_gives_nan_gradients(settings, tmp_path):
    torch.backends.cuda.enable_cudnn_sdp(True)
    train(settings(method="lora", steps=1, sample_every=0), tmp_path)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(settings, tmp_path):
    with pytest.raises(TrainingError, match=r"became (nan|inf) at step \d+; .*try a lower --learning-rate than 1"):
        train(settings(method="lora", learning_rate=1.0, max_grad_norm=1e30, steps=400, checkpoint_every=1,
                       sample_every=0, weight_decay=0, dtype="float16", mixed_precision="no", options={"alpha": 1e4},
                       prior_loss_weight=0, train_text_encoder=False), tmp_path)  # fmt: skip
    run = find(tmp_path, "Rex")
    assert run is not None and run.state["status"] == "failed" and "became" in run.state["reason"]
    assert not (run.folder / "Rex.safetensors").exists(), "no broken adapter is called finished"
    for checkpoint in run.checkpoints():
        assert weights(checkpoint / "adapter.safetensors").isfinite().all()
    assert json.loads((run.folder / "events.jsonl").read_text().splitlines()[-1])["event"] == "failed"


def test_class_images_are_drawn_once_and_shared(settings, tmp_path):
    train(settings(name="a"), tmp_path)
    images = sorted((tmp_path / ".cache").rglob("*.png"))
    stamps = [image.stat().st_mtime_ns for image in images]
    train(settings(name="b", num_class_images=3), tmp_path)
    after = sorted((tmp_path / ".cache").rglob("*.png"))
    assert len(images) == 2 and len(after) == 3
    assert [image.stat().st_mtime_ns for image in after[:2]] == stamps


def test_class_images_of_a_base_in_fewer_bits_are_its_own(tmp_path):
    full, packed = tiny_pipe(), tiny_pipe()
    quantise(packed.unet, "nf4")
    for pipe in (full, packed):
        list(load_class_images(pipe, "dog", 1, 16, tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_velocity_prediction_and_a_frozen_text_encoder(settings, tmp_path):
    base = tmp_path / "v-base"
    tiny_pipe("v_prediction").save_pretrained(base)
    adapter = train(settings(base=str(base), train_text_encoder=False), tmp_path)
    assert all(key.startswith("unet.") for key in load_file(adapter))


def test_the_loss_falls_on_a_single_photo(settings, tmp_path, photos):
    heard = []
    train(
        settings(photos=[str(photos / "0.jpg")], steps=60, prior_loss_weight=0, sample_every=0, batch_size=4,
                 flip=False, checkpoint_every=100, learning_rate=3e-2, method="lora"), tmp_path, [heard.append],
    )  # fmt: skip
    losses = [event.loss for event in heard if isinstance(event, Step)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20])


def test_bfloat16_and_gradient_checkpointing(settings, tmp_path):
    adapter = train(settings(dtype="bfloat16", gradient_checkpointing=True), tmp_path / "bf16")
    assert weights(adapter).isfinite().all()
    adapter = train(settings(mixed_precision="bf16"), tmp_path / "mixed")
    assert weights(adapter).isfinite().all()


def test_without_sample_pictures_nothing_is_loaded_to_score_them(settings, tmp_path):
    heard = []
    train(settings(base="toybox", sample_prompts=[], prior_loss_weight=0, train_text_encoder=False, steps=1,
                   batch_size=1), tmp_path, [heard.append])  # fmt: skip
    assert "scores" not in [event.name for event in heard if isinstance(event, Phase)]


def test_out_of_memory_steps_down_once_and_says_so(settings, tmp_path):
    """A listener stands in for the device: it raises what a full one does. The result is that of a lighter run."""
    heard = []

    def full_device(event):
        heard.append(event)
        if isinstance(event, Step) and event.step == 1 and not any(isinstance(e, Notice) for e in heard):
            raise torch.OutOfMemoryError("CUDA out of memory")

    adapter = train(settings(sample_every=0), tmp_path / "a", [full_device])
    (notice,) = (event.message for event in heard if isinstance(event, Notice))
    saved = "batch size 1, gradient accumulation steps 2, gradient checkpointing True"
    assert f"continuing from the previous step with {saved}" in notice
    assert [event.step for event in heard if isinstance(event, Step)] == [1, 2, 3, 4]
    assert weights(adapter).isfinite().all() and find(tmp_path / "a", "Rex").config.batch_size == 1


def test_a_run_that_stepped_down_resumes_with_the_same_settings(settings, tmp_path):
    def full_device(event):
        if isinstance(event, Checkpoint) and event.step == 2:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)")

    config = settings(sample_every=0)
    whole = train(config, tmp_path / "whole", [full_device])
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [full_device, StopAfter(3)])
    assert torch.equal(weights(train(config, tmp_path / "parts", resume=True)), weights(whole))
    with pytest.raises(RunError, match="started with another batch_size"):
        train(settings(sample_every=0, batch_size=8), tmp_path / "whole", resume=True)


def test_out_of_memory_within_an_accumulation_leaves_no_gradients_behind(settings, tmp_path):
    """The second batch of three does not fit: what the first left must not count twice."""
    changes = {"sample_prompts": [], "prior_loss_weight": 0, "train_text_encoder": False}
    passes, pipe = [], tiny_pipe()

    def full_device(*_):
        passes.extend([torch.is_grad_enabled()])
        if sum(passes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = pipe.unet.register_forward_pre_hook(full_device)
    stepped_down = train(settings(**changes, gradient_accumulation_steps=3), tmp_path / "a", pipe=pipe)
    hook.remove()
    lean = settings(**changes, batch_size=1, gradient_accumulation_steps=6, gradient_checkpointing=True)
    assert torch.equal(weights(stepped_down), weights(train(lean, tmp_path / "b", pipe=tiny_pipe())))


def test_out_of_memory_with_nothing_left_gives_advice(settings, tmp_path):
    def full_device(event):
        if isinstance(event, Step):
            raise torch.OutOfMemoryError("CUDA out of memory")

    lean = settings(gradient_checkpointing=True, batch_size=1)
    with pytest.raises(TrainingError, match="nothing left to save; try a smaller --resolution"):
        train(lean, tmp_path, [full_device])


def test_a_rank_the_base_cannot_hold(settings, tmp_path):
    with pytest.raises(TrainingError, match=r"hra can't be attached to .*: rank 64 is too large"):
        train(settings(options={"rank": 64}), tmp_path)
    train(settings(), tmp_path)  # a run that failed before its first checkpoint does not block its name


def test_a_held_pipeline_that_cannot_hold_the_adapter_is_left_as_it_was(settings, tmp_path):
    pipe = tiny_pipe()
    attachment.attach(pipe.text_encoder, "lora", {"rank": 4}, name="Rex")
    with pytest.raises(TrainingError, match="'Rex' is on this model already"):
        train(settings(), tmp_path, pipe=pipe)
    assert attachment.adapter_names(pipe.unet) == [] and attachment.adapter_names(pipe.text_encoder) == ["Rex"]


def test_two_processes_are_one_with_two_batches_a_step(settings, tmp_path):
    """accelerate launch with two CPU processes: gradients are shared and each sees its own batches."""
    configs.write(settings(sample_every=0), tmp_path / "c.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2",
               "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0",
               "--module", "app.cli", "train", "--config", str(tmp_path / "c.yaml"), "--output", str(tmp_path),
               "--json"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sum(event["event"] == "finished" for event in events) == 1, "only the main process speaks"
    two = weights(tmp_path / "Rex" / "Rex.safetensors")
    one = weights(train(settings(sample_every=0, gradient_accumulation_steps=2), tmp_path / "one"))
    assert relative(two, one) < 1e-3, "equal but for rounding, which AdamW's first steps enlarge"
