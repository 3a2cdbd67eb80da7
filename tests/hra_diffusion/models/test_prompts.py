"""Prompts: weights, maximum length, and encoding."""

import pytest
import torch
from conftest import PIPES, distance, stir, tiny_pipe, tiny_tokenizer

from hra_diffusion.adapters import attachment
from hra_diffusion.generation.png import PNG_KEY
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate, generate_batch
from hra_diffusion.models import families, prompts
from hra_diffusion.models.prompts import PromptWarning, parse_weights, prompt_notes, split, without_weights

FEW = Settings(steps=4)
LONG = "a red dog and a blue cat in the deep snow under two stars"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (dog:1.4)", [("a ", 1), ("dog", 1.4)]),
        ("(a dog: .5 ), snow", [("a dog", 0.5), (", snow", 1)]),
        ("((red dog:1.2) in snow:1.5)", [("red dog", 1.2 * 1.5), (" in snow", 1.5)]),
        ("(brown) (dog:2)", [("(brown) ", 1), ("dog", 2)]),
        ("(a (brown) dog:0)", [("a (brown) dog", 0)]),
        (r"\(dog:1.4\)", [("(dog:1.4)", 1)]),
        (r"(a \(b\):1.4)", [("a (b)", 1.4)]),
        ("(aspect 16:9) (dog:1.1)", [("(aspect 16:9) ", 1), ("dog", 1.1)]),
        ("(:1.4)", [("", 1)]),
        ("(dog:1.0)", [("dog", 1)]),
    ],
)
def test_parsing_weights(prompt, expected):
    found = parse_weights(prompt)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    "prompt",
    ["", "a dog", "a (brown) dog", "((dog))", "[dog:cat:0.5]", r"saber \(fate\)", "at 10:30", "(dog", "dog++",
     "a (b:c)", "(aspect 16:9)", "1:1)", "(-:-1)"],
)  # fmt: skip
def test_prompts_without_weights_are_unchanged(prompt):
    assert parse_weights(prompt) == [(prompt, 1.0)] and without_weights(prompt) == prompt


def test_words_beyond_the_maximum_length_are_noted():
    tokenizer = tiny_tokenizer()  # one token per letter, up to 22
    assert split(tokenizer, "a dog in the snow") == ("a dog in the snow", "")
    assert split(tokenizer, LONG) == ("a red dog and a blue cat in", "the deep snow under two stars")
    assert split(tokenizer, "x" * 30) == ("", "x" * 30)
    assert prompt_notes(tokenizer, "a (dog:1.4) in the snow") == []
    (cut,) = prompt_notes(tokenizer, LONG.replace("dog", "(dog:1.3)"))
    assert "22 tokens" in cut and "“the deep snow under two stars”" in cut
    (text,) = prompt_notes(tokenizer, "(size 16:9)")
    assert "“(size 16:9)” is read as text" in text


def encode(pipe, names, texts):
    """Encode each text with the pipeline's text encoder; returns the hidden states that the UNet takes."""
    encoder, tokenizer = (getattr(pipe, name) for name in names)
    ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-2] if families.of(pipe).name == "sdxl" else output.last_hidden_state


@pytest.mark.parametrize("family", PIPES)
@torch.no_grad()
def test_weights_scale_hidden_states_from_the_empty_prompt(family):
    """(z − z_empty) · weight + z_empty, as in ComfyUI for weights above 1 (comfy/sd1_clip.py)."""
    pipe = PIPES[family]()
    for encoder in families.text_encoders(pipe):
        encoder.eval()
    encoded = families.encode_weighted(pipe, "a (dog:1.4)", "")
    parts, empty = ([encode(pipe, names, [text]) for names in families.of(pipe).encoders] for text in ("a dog", ""))
    state, nothing = torch.cat(parts, -1), torch.cat(empty, -1)
    weight = torch.ones(1, 24, 1)
    weight[:, 2:5] = 1.4  # start, "a", "d", "o", "g"
    torch.testing.assert_close(encoded["prompt_embeds"], (state - nothing) * weight + nothing)
    own = families.of(pipe).encode_prompts(pipe, ["a dog"], [""])
    torch.testing.assert_close(encoded["negative_prompt_embeds"], own["negative_prompt_embeds"])

    encoded = families.encode_weighted(pipe, LONG, "a cat")
    head, tail = split(families.tokenizer(pipe), LONG)
    tail, last = split(families.tokenizer(pipe), tail)
    texts = [head, tail, last]
    expected = torch.cat([encode(pipe, names, texts).reshape(1, 72, -1) for names in families.of(pipe).encoders], -1)
    torch.testing.assert_close(encoded["prompt_embeds"], expected)
    assert encoded["negative_prompt_embeds"].shape == expected.shape
    if family == "sdxl":
        own = families.of(pipe).encode_prompts(pipe, [head], ["a cat"])
        assert all(encoded[key].equal(own[key]) for key in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"))


@torch.no_grad()
def test_weights_below_1_move_towards_the_prompt_without_the_words():
    pipe = tiny_pipe()
    states = [families.encode_weighted(pipe, f"a (red:{w}) dog", None)["prompt_embeds"] for w in (1, 0.9, 0.5, 0)]
    moved = [float((state - states[0]).norm()) for state in states]
    assert moved == sorted(moved) and moved[1] > 0


@pytest.fixture(scope="module")
def adapted():
    """A tiny pipeline with an adapter on its text encoder and another one on its UNet."""
    pipe = tiny_pipe()
    for name, model in (("text", pipe.text_encoder), ("unet", pipe.unet)):
        attachment.attach(model, "hra", {"rank": 4}, name=name)
        stir(attachment.adapter_parameters(model, name).values(), by=1.0)
    return pipe


@pytest.mark.filterwarnings("ignore::hra_diffusion.models.prompts.PromptWarning")
def test_requests_in_a_batch_keep_their_adapters_and_length(adapted):
    requests = [
        Request("a dog", 1),
        Request(LONG, 1, (("text", 1.0),)),
        Request("a (dog:2)", 1, (("text", 1.0),)),
        Request("a (dog:2)", 1, (("unet", 1.0),)),
        Request("a (dog:2)", 1),
        Request("a dog", 1, (("text", 0.5),), "(blurry:0.5)"),
        Request(LONG, 1),
    ]
    together = generate_batch(adapted, requests, FEW)
    for request, image in zip(requests, together, strict=True):
        assert distance(image, generate_batch(adapted, [request], FEW)[0]) < 0.5
    apart = [distance(together[a], together[b]) for a, b in ((4, 0), (4, 2), (4, 3), (1, 6))]
    assert min(apart) > 0.6, "weights and adapters have an effect"


def test_prompts_without_weights_are_encoded_by_the_pipeline(adapted, monkeypatch):
    plain_prompts = ["a dog", "a (brown) dog", r"\(dog\)", "((dog))"]
    monkeypatch.setattr(families, "hidden_states", None)
    assert len(generate(adapted, plain_prompts, {}, settings=FEW)) == 4


def test_notes_are_warned_of_and_saved_in_the_image(adapted):
    with pytest.warns(PromptWarning, match="“the deep snow under two stars”"):
        (image,) = generate(adapted, LONG, {}, settings=FEW)
    (note,) = image.info[PNG_KEY]["notes"]
    assert "“the deep snow under two stars”" in note and prompts.MAX_WEIGHT == 2
