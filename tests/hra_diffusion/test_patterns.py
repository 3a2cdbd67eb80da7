"""Patterns of layer names: linear time, what earlier versions accepted, and errors."""

import re
import time

import pytest
import torch
from conftest import tiny_unet

from hra_diffusion.adapters import attachment, targets
from hra_diffusion.errors import UserError
from hra_diffusion.patterns import compile_pattern

EVIL = [r"(\w+\.?)+!", r"(a|a)*b", r"(.*)*x", r"([a-z_.]+)+$!", r"(\w+\.?)+X"]
"""Patterns on which a backtracking engine takes exponential time."""


@pytest.mark.parametrize("pattern", EVIL)
def test_no_pattern_takes_exponential_time(pattern):
    start = time.perf_counter()
    assert not compile_pattern(pattern).fullmatch("mid_block.attentions.0.transformer_blocks.0.attn1.to_q" * 4)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("field", ["targets", "exclude"])
def test_a_visitors_pattern_is_matched_in_linear_time(field):
    with pytest.raises(UserError, match=r"\(\\\\w\+"):
        attachment.plan_attachment(tiny_unet(), "lora", {"rank": 2}, **{field: EVIL[0]})


@pytest.mark.parametrize(
    "pattern",
    [".*attn.*to_q", r".*(to_q|to_k)", r"mid_block\..*\.attn[12]\.to_out\.0", r"^.*\bto_v$", r"(?i).*TO_Q",
     r"[^.]+\.attentions\.\d+\..*to_[qk]", r"(?:.*\.)?attn1\.to_(?P<which>[qkv])", r".*?\.to_\w{1,3}(\.0)?"],
)  # fmt: skip
def test_regular_expressions_of_earlier_versions_match_as_pythons_do(pattern):
    unet = tiny_unet()
    paths = [path for path, module in unet.named_modules() if not list(module.children())]
    assert targets.find_targets(unet, pattern) == [path for path in paths if re.fullmatch(pattern, path)] != []


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(?!mid).*to_q", "lookaround"), (r"(a)\1", "backreferences"), ("(", "missing"), ("*to_q", "repetition"),
     ("a" * 1001, "1001 characters; at most 1000"), ("(" * 500 + ")" * 500 + "\ud800", "1001 characters"),
     ("\ud800", "not Unicode"), ("((a{100}){100}){100}", "regular expression")],
)  # fmt: skip
def test_other_syntax_is_refused_with_what_is_allowed(pattern, message):
    with pytest.raises(UserError, match=message) as error:
        compile_pattern(pattern)
    assert len(str(error.value)) < 500


def test_named_sets_leave_out_the_pooling_attention():
    unet = tiny_unet()
    unet.add_embedding = torch.nn.ModuleDict({"to_q": torch.nn.Linear(2, 2)})
    assert not any(path.startswith("add_embedding") for path in targets.find_targets(unet, "attention"))
