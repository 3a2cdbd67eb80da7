"""Training configurations: presets, YAML round trips, error messages."""

import pytest

from hra_diffusion.adapters import registry
from training import config as configs
from training.config import ConfigError, TrainConfig
from training.presets import PRESETS

GIVEN = {"name": "Rex", "photos": ["a.jpg"], "class_noun": "dog"}


@pytest.mark.parametrize("method", registry.method_names())
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("base", ["toybox", "stable-diffusion-v1-5/stable-diffusion-v1-5"])
def test_every_method_has_defaults_for_every_preset_and_base(method, preset, base):
    config = configs.parse({**GIVEN, "method": method, "preset": preset, "base": base})
    assert registry.get_method(method).parse(config.options).rank % 2 == 0


def test_longer_presets_have_more_steps():
    quick, balanced, best = (configs.parse({**GIVEN, "preset": preset}).steps for preset in PRESETS)
    assert quick < balanced < best


def test_given_values_take_precedence_over_the_preset():
    config = configs.parse({**GIVEN, "steps": 7, "options": {"rank": 2}, "method": "lora"})
    assert config.steps == 7 and config.options["rank"] == 2


def test_learning_rates_for_stable_diffusion_are_the_papers():
    """That of HRA is from the released code, which has the same initialization and normalization. Those of the methods
    after the five are not from their papers."""
    rates = {m: configs.parse({**GIVEN, "base": "a/b", "method": m}).learning_rate for m in registry.method_names()}
    compared = {"lora": 1e-4, "moslora": 1e-4, "hra": 1e-4, "hoft": 5e-4, "shoft": 5e-4}
    assert rates == compared | {"dora": 1e-4, "oft": 6e-5, "boft": 3e-5}


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, 0.25),
        ({"method": "shoft", "optimizer": "lion8bit"}, 0.25),
        ({"optimizer": "prodigy"}, 1),
        ({"method": "lora"}, 1),
    ],
)
def test_above_the_rank_of_the_preset_products_of_reflections_have_a_lower_learning_rate(changes, factor):
    rates = {
        rank: configs.parse({**GIVEN, "method": "hra", **changes, "options": {"rank": rank}}).learning_rate
        for rank in (4, 16, 64)
    }
    assert rates[4] == rates[16] and rates[64] == pytest.approx(factor * rates[16])
    assert configs.parse({**GIVEN, **changes, "options": {"rank": 64}, "learning_rate": 0.5}).learning_rate == 0.5


def test_min_snr_formula_and_flip_depend_on_the_base_model():
    toybox, real = configs.parse(GIVEN), configs.parse({**GIVEN, "base": "a/b"})
    assert (real.min_snr_formula, real.flip) == ("standard", False)
    assert (toybox.min_snr_formula, toybox.flip) == ("plus-one", True)


def test_runs_of_earlier_versions_take_the_earlier_defaults(tmp_path):
    configs.write(configs.parse({**GIVEN, "base": "a/b", "flip": True}), tmp_path / "c.yaml")
    now = configs.read_run(tmp_path / "c.yaml")
    assert (now.min_snr_formula, now.size_conditioning, now.add_trigger) == ("standard", True, True)
    assert now.caption_dropout == 0.05, "the default of real base models, for guidance"
    lines = (tmp_path / "c.yaml").read_text().splitlines()
    kept = [line for line in lines if line.partition(":")[0] not in configs.EARLIER_DEFAULTS]
    assert len(kept) == len(lines) - len(configs.EARLIER_DEFAULTS)
    (tmp_path / "c.yaml").write_text("\n".join(kept))
    before = configs.read_run(tmp_path / "c.yaml")
    assert (before.min_snr_formula, before.size_conditioning, before.add_trigger) == ("plus-one", False, False)
    assert before.caption_dropout == 0
    assert before.flip and configs.read(tmp_path / "c.yaml").add_trigger, "other YAML files take the current defaults"


def test_yaml_round_trip(tmp_path):
    config = configs.parse({**GIVEN, "options": {"orthogonality": float("inf")}, "sample_prompts": ["ein Hündchen"]})
    configs.write(config, tmp_path / "c.yaml")
    assert configs.read(tmp_path / "c.yaml") == config
    assert set(TrainConfig.model_fields) == set(configs.read_values(tmp_path / "c.yaml")), "every field is written"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 3}, "no option 'stepz'"),
        ({"steps": 0}, "steps.*greater than or equal to 1"),
        ({"method": ["hra"]}, "unknown method"),
        ({"options": 5}, "options must be lines"),
        ({"method": "magic"}, "unknown method 'magic'; known methods: hoft"),
        ({"options": {"rank": 3}}, "rank must be even"),
        ({"options": {"mixer": "kaiming"}}, "no option 'mixer'"),
        ({"preset": "fast"}, "preset.*'quick', 'balanced' or 'best'"),
        ({"name": "../../etc"}, "letters, digits"),
        ({"name": "a/b"}, "letters, digits"),
        ({"name": "a\x07b"}, "letters, digits"),
        ({"name": "x" * 300}, "300 characters; use 1 to 64"),
        ({"name": ""}, "0 characters"),
        ({"name": "con"}, "can't be used for a folder"),
        ({"class_noun": "\n"}, "plain words"),
        ({"dtype": "int3"}, "float32"),
        ({"photos": []}, "photos"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"ranks": {".*to_q": 0}}, "ranks.*greater than or equal to 1"),
        ({"cuda_graph": "on"}, "cuda_graph.*'auto' or 'off'"),
    ],
)
def test_invalid_values_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        configs.parse({**GIVEN, **change})


def test_names_may_be_in_any_language():
    for name in ("Zoë", "ポチ", "Rex 2", "my_dog-1"):
        assert configs.parse({**GIVEN, "name": name}).name == name


@pytest.mark.parametrize("text", ["", "just words", ": ["])
def test_a_file_without_a_configuration_is_rejected(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        configs.read(tmp_path / "c.yaml")
