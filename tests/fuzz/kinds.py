"""What is fuzzed: for each kind of input, how one is made from a number, and what reads it."""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from attacker import GENERATE
from conftest import stir, tiny_pipe
from mutations import mutate_adapter, mutate_bytes, mutate_json, mutate_text
from PIL import Image, PngImagePlugin
from safetensors.torch import save

from app.commands import adapters as adapters_command
from app.inference_session import InferenceSession
from app.web import blocks
from app.web.context import AppContext
from app.web.event_bodies import checked_body
from app.web.generate_request import read_request
from hra_diffusion import interop, library, patterns, pipeline, yaml_text
from hra_diffusion.adapters import adapter_file, attachment, registry, targets
from hra_diffusion.generation.png import PNG_KEY, read_png
from hra_diffusion.models import loading
from training import config as configs
from training.data.decoding import load_photo
from training.rank_matching import layers_to_adapt

LINEAR, CONV = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"
"""Layers of the tiny base: 32 to 32, and 32 to 32 with a 3 × 3 kernel."""


@dataclass(frozen=True)
class Kind:
    """A kind of input. ``write`` makes one in an empty folder and returns what ``read`` takes.

    ``read`` raises nothing but UserError, in bounded time and memory.
    """

    name: str
    write: Callable[[Random, Path], Any]
    read: Callable[[Any], object]


def kinds(folder: Path) -> list[Kind]:
    """All kinds. ``folder`` is for the files from which inputs are made."""
    warnings.simplefilter("ignore")
    pipe = tiny_pipe()
    own, others, peft = _own_files(folder), _exports(folder) + _lycoris(), _peft_folders(folder)
    return [
        Kind("own adapters", _file(own, mutate_adapter, "a.safetensors"), lambda path: _use_own(pipe, path)),
        Kind("kohya, diffusers, LyCORIS", _file(others, mutate_adapter, "a.safetensors"), _importer(pipe)),
        Kind("PEFT folders", _folder(peft), _importer(pipe)),
        Kind("checkpoints", _file(_checkpoints(), mutate_adapter, "a.safetensors"), _load_base),
        Kind("images", _file(_images(), mutate_bytes, "a.png"), load_photo),
        Kind("PNG settings", _png, lambda path: _show(read_png(path))),
        Kind("configurations", _yaml, lambda text: _configure(pipe, text)),
        Kind("patterns", _pattern, lambda text: _match(pipe, text)),
        Kind("API calls", _event, _caller(folder)),
    ]  # fmt: skip


def _event(random: Random, folder: Path) -> bytes:
    body = {"data": GENERATE, "fn_index": None, "session_hash": "s1", "event_data": {"do": "x"}, "trigger_id": 3}
    text = mutate_text(json.dumps(body), random)
    return (
        text.encode(errors="surrogatepass")
        if random.random() < 0.8
        else mutate_bytes(text.encode(errors="replace"), random)
    )


def _caller(folder: Path) -> Callable[[bytes], object]:
    """What the page does with the body of an event before it generates images."""
    page = blocks.build(AppContext(folder / "outputs", InferenceSession("toybox", "cpu"), ["toybox"], local=True))
    app = SimpleNamespace(get_blocks=lambda: page, uploaded_file_dir=str(folder))
    return lambda raw: read_request(json.loads(checked_body(app, "generate", raw))["data"])


def _file(
    seeds: Sequence[bytes], mutate: Callable[[bytes, Random], bytes], name: str
) -> Callable[[Random, Path], Path]:
    def write(random: Random, folder: Path) -> Path:
        (folder / name).write_bytes(mutate(random.choice(seeds), random))
        return folder / name

    return write


def _trained(method: str) -> Any:
    pipe = tiny_pipe()
    options = {"rank": 4} | ({"orthogonality": float("inf")} if method == "hra" else {})
    attachment.attach(pipe.unet, method, options, name="Rex", targets=[LINEAR, CONV])
    stir(attachment.adapter_parameters(pipe.unet, "Rex").values())
    return pipe


def _own_files(folder: Path) -> list[bytes]:
    files = []
    for method in registry.method_names():
        pipe = _trained(method)
        training = {"step": 3, "photos": 5, "seconds": {"train": 1.5}, "memory": 10**9, "resolution": 512, "seed": 0}
        attachment.remember(pipe.unet, "Rex", {"training": training, "trigger": "sks", "class_noun": "dog"})
        pipeline.save(pipe, folder / f"{method}.safetensors", "Rex")
        files.append((folder / f"{method}.safetensors").read_bytes())
    return files


def _exports(folder: Path) -> list[bytes]:
    files = []
    for method in ("lora", "shoft"):
        for form in ("kohya", "diffusers"):
            interop.export(_trained(method), "Rex", form, path := folder / f"{form}-{method}.safetensors")
            files.append(path.read_bytes())
    settings = {"unet.r": 4, "unet.lora_alpha": 4.0, "unet.rank_pattern": {"conv1": 4}, "unet.target_modules": ["to_q"]}
    tensors = {f"unet.{LINEAR}.lora_A.weight": torch.ones(4, 32), f"unet.{LINEAR}.lora_B.weight": torch.ones(32, 4)}
    return [*files, save(tensors, {"lora_adapter_metadata": json.dumps(settings)})]


def _lycoris() -> list[bytes]:
    """Files of each algorithm, with random tensors."""
    linear = [
        {"hada_w1_a": (32, 4), "hada_w1_b": (4, 32), "hada_w2_a": (32, 4), "hada_w2_b": (4, 32), "alpha": ()},
        {"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8), "alpha": ()},
        {"lokr_w1": (4, 4), "lokr_w2": (8, 8)},
        {"diff": (32, 32)}, {"oft_blocks": (4, 8, 8), "alpha": (), "rescale": (32, 1)}, {"oft_blocks": (2, 4, 8, 8)},
        {"oft_R.weight": (8, 6)}, {"on_input": (1,), "weight": (32,)},
        {"a1.weight": (32, 4), "a2.weight": (4, 32), "b1.weight": (32, 4), "b2.weight": (4, 32)},
        {"lora_up.weight": (32, 4), "lora_down.weight": (4, 32), "dora_scale": (32, 1), "alpha": ()},
    ]  # fmt: skip
    conv = [
        {"lora_up.weight": (32, 4, 1, 1), "lora_down.weight": (4, 32, 1, 1), "lora_mid.weight": (4, 4, 3, 3)},
        {"lokr_w1": (4, 4), "lokr_w2_a": (2, 8), "lokr_w2_b": (2, 8), "lokr_t2": (2, 2, 3, 3)},
        {"hada_w1_a": (2, 32), "hada_w1_b": (2, 32), "hada_t1": (2, 2, 3, 3), "hada_w2_a": (2, 32),
         "hada_w2_b": (2, 32), "hada_t2": (2, 2, 3, 3)},
    ]  # fmt: skip
    torch.manual_seed(0)
    files = []
    for path, algorithms in ((LINEAR, linear), (CONV, conv)):
        name = f"lora_unet_{path.replace('.', '_')}"
        files += [save({f"{name}.{part}": torch.rand(shape) for part, shape in parts.items()}) for parts in algorithms]
    return files


def _peft_folders(folder: Path) -> list[tuple[dict[str, Any], bytes]]:
    """(settings, weights) of PEFT folders."""
    found = []
    for method in ("lora", "hra"):
        done = interop.export(_trained(method), "Rex", "peft", folder / f"peft-{method}")
        config, weights = (next(done.path.rglob(name)) for name in ("adapter_config.json", "adapter_model.safetensors"))
        found.append((json.loads(config.read_text()), weights.read_bytes()))
    more = {"rank_pattern": {"to_q": 4, "^mid_block.*": 2}, "alpha_pattern": {".*to_q": 2.0}, "exclude_modules": "x.*",
            "target_modules": ".*(to_q|conv1)", "use_rslora": True, "layers_pattern": ["blocks"]}  # fmt: skip
    prefix, torch_tensor = f"base_model.model.{LINEAR}", torch.rand
    loha = {f"{prefix}.hada_w{i}_{s}": torch_tensor((32, 4) if s == "a" else (4, 32)) for i in (1, 2) for s in "ab"}
    oft = {f"{prefix}.oft_R.weight": torch_tensor(8, 6)}
    boft = {f"{prefix}.boft_R": torch_tensor(2, 8, 4, 4), f"{prefix}.boft_s": torch_tensor(32, 1)}
    return [*found, (found[0][0] | more, found[0][1]),
            ({"peft_type": "LOHA", "r": 4, "alpha": 2.0, "target_modules": ["to_q"]}, save(loha)),
            ({"peft_type": "OFT", "r": 0, "oft_block_size": 4, "peft_version": "0.21.2"}, save(oft)),
            ({"peft_type": "BOFT", "boft_block_size": 4, "boft_n_butterfly_factor": 2}, save(boft))]  # fmt: skip


def _folder(seeds: Sequence[tuple[dict[str, Any], bytes]]) -> Callable[[Random, Path], Path]:
    def write(random: Random, folder: Path) -> Path:
        settings, weights = random.choice(seeds)
        text, chance = json.dumps(settings), random.random()
        (folder / "adapter_config.json").write_text(mutate_text(text, random) if chance < 0.7 else text)
        changed = mutate_adapter(weights, random) if chance > 0.6 else weights
        (folder / "adapter_model.safetensors").write_bytes(changed)
        return folder

    return write


def _use_own(pipe: Any, path: Path) -> None:
    """All that the command line and the page do with an adapter of their folder."""
    for saved in library.list_adapters([path.parent]):
        adapters_command.line(saved)
        json.dumps(adapters_command.facts(saved))
        library.training_costs(saved.path, saved.info)
        pipeline.incompatibility(saved.info, pipe)
    try:
        pipeline.load(pipe, path, "fuzzed")
        pipeline.activate(pipe, {"fuzzed": 0.5})
    finally:
        pipeline.detach(pipe)


def _importer(pipe: Any) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        file, report = interop.import_adapter(pipe, path, path.parent / "out" if path.is_dir() else path.parent, "Rex")
        "\n".join(report.lines)
        adapter_file.read(file)

    return read


def _load_base(path: Path) -> None:
    loading.load_base(str(path))


def _checkpoints() -> list[bytes]:
    """The keys by which a single file is recognised, with tensors of small shapes."""
    keys = {
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (8, 2048),
        "model.diffusion_model.out.2.bias": (4,),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (8, 768),
        "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3),
    }
    return [save({key: torch.rand(shape) for key, shape in keys.items()}, {"modelspec.prediction_type": "v"})]


def _images() -> list[bytes]:
    image = Image.effect_noise((80, 72), 60).convert("RGB")
    forms: list[tuple[str, dict[str, Any]]] = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}),
                                               ("GIF", {})]  # fmt: skip
    files = []
    for form, options in forms:
        image.save(stream := io.BytesIO(), form, **options)
        files.append(stream.getvalue())
    return files


SETTINGS = {"base": "tiny", "dtype": "float32", "prompt": "a sks dog", "seed": 9, "adapters": {"Rex": 0.5}, "steps": 4,
            "negative_prompt": "", "guidance_scale": 7.5, "scheduler": "dpm++", "width": 16, "height": 16,
            "original_size": [16, 16], "notes": ["a note"]}  # fmt: skip


def _png(random: Random, folder: Path) -> Path:
    info = PngImagePlugin.PngInfo()
    text = mutate_text(json.dumps(SETTINGS), random)
    info.add_itxt(PNG_KEY, text, zip=random.random() < 0.2)
    Image.new("L", (4, 4)).save(stream := io.BytesIO(), "PNG", pnginfo=info)
    data = stream.getvalue() if random.random() < 0.8 else mutate_bytes(stream.getvalue(), random)
    (folder / "a.png").write_bytes(data)
    return folder / "a.png"


def _show(settings: dict[str, Any]) -> None:
    """What ``show`` and the Generate tab read."""
    yaml_text.write(settings)
    json.dumps(settings)
    for key in (
        "prompt",
        "seed",
        "adapters",
        "negative_prompt",
        "steps",
        "guidance_scale",
        "scheduler",
        "width",
        "height",
    ):
        settings[key]


CONFIG = {"name": "Rex", "photos": ["photos"], "class_noun": "dog", "method": "hra", "options": {"rank": 4},
          "steps": 10, "targets": "attention", "exclude": ".*to_v", "ranks": {".*to_q": 2}, "learning_rate": 1e-4,
          "base": "toybox", "boxes": {"a.jpg": [0, 0, 64, 64]}, "sample_prompts": ["a {subject}"],
          "memory_limit": "8GB", "seed": 1,
          "train_text_encoder": False, "preset": "quick"}  # fmt: skip
SNIPPETS = ["&a", "*a", "!!bool", "!!python/object:x", "2026-01-01", "9" * 5000, "0x_", "1:30:00", "[" * 200, "{", "- ",
            "? ", "|\n  x", ".nan", "<<: *a", "\t", "...", "---", "%YAML 1.1", "'\\ud800'", '"\\0"', "~"]  # fmt: skip


def _yaml(random: Random, folder: Path) -> str:
    chance = random.random()
    changed = mutate_json(CONFIG, random) if chance < 0.7 else CONFIG
    text = yaml_text.write(changed) if isinstance(changed, dict) else json.dumps(changed)
    if chance > 0.5:
        place = random.randrange(len(text) + 1)
        text = text[:place] + random.choice(SNIPPETS) + text[place:]
    return text if chance < 0.9 else mutate_bytes(text.encode(), random).decode(errors="replace")


def _configure(pipe: Any, text: str) -> None:
    """What the command line and the page do with a configuration before a run."""
    config = configs.parse(configs.parse_yaml(text))
    layers_to_adapt(config, pipe)
    yaml_text.parse(yaml_text.write(config.model_dump(mode="json")))


PIECES = [*"abt_.*+?|()[]{}^$\\", ".*", "to_q", "attn1", r"\w+", r"\d", r"\.", "(?:", "(?!", "(?=", "(?i)", "(?P<a>",
          r"\1", "{2,3}", "{1000}", "[^.]", r"\b", r"\Z", "é", "\ud800", "(\\w+\\.?)+", "(a|a)*",
          "mid_block"]  # fmt: skip


def _pattern(random: Random, folder: Path) -> str:
    return "".join(random.choice(PIECES) for _ in range(random.choice((1, 3, 6, 12, 40))))


def _match(pipe: Any, text: str) -> None:
    compiled = patterns.compile_pattern(text)
    for path, _ in targets.base_modules(pipe.unet):
        compiled.fullmatch(path)
    compiled.fullmatch("mid_block.attentions.0." * 20)
