"""Tests of the tokenizer: its files, its vocabulary, and arbitrary text."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from toybox.attributes import ATTRIBUTES
from toybox.captions import RARE_TOKENS, WORDS
from toybox.scenes import SCENES
from toybox.tokenizer import MAX_LENGTH, save_tokenizer, tokenise, train_tokenizer

TOKENIZER = train_tokenizer()


def test_training_is_deterministic() -> None:
    """Merges don't depend on hash seeds."""
    assert train_tokenizer().get_vocab() == TOKENIZER.get_vocab()


def test_it_loads_from_clips_two_files(tmp_path: Path) -> None:
    """Without tokenizer.json."""
    save_tokenizer(TOKENIZER, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    text = "A photo of an OHWX owl, Zürich 漢字 🦊"
    assert loaded(text).input_ids == TOKENIZER(text).input_ids
    assert loaded.model_max_length == MAX_LENGTH


def test_words_of_the_world_are_single_tokens() -> None:
    """Also within a sentence."""
    words = {*" ".join([*WORDS, *ATTRIBUTES, *SCENES]).lower().split(), *RARE_TOKENS, "next"}
    assert [word for word in words if TOKENIZER.tokenize(f"a {word} here")[1] != f"{word}</w>"] == []


@given(st.text(max_size=20))
def test_any_text_has_tokens(text: str) -> None:
    """The unknown token, which is also the end-of-text token, doesn't occur."""
    ids = TOKENIZER(text.replace("<", "")).input_ids
    assert ids.count(TOKENIZER.eos_token_id) == 1
    assert ids[-1] == TOKENIZER.eos_token_id == max(TOKENIZER.get_vocab().values())


def test_batches_are_padded_and_truncated() -> None:
    """To MAX_LENGTH."""
    assert tokenise(TOKENIZER, ["a fox", "fox " * 100]).shape == (2, MAX_LENGTH)
