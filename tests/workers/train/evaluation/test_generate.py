"""Both ways to answer, and which models take which."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from workers.adapter.files import attach
from workers.config.model import ModelSpec
from workers.models.base import load_base
from workers.train.evaluation.generate import batched, padded

PROMPTS = [tuple(Random(n).choices(range(4, 64), k=1 + 5 * n)) for n in range(7)]


@torch.no_grad()
def test_both_ways_give_the_same_tokens(
    tiny_model_dir: Path, make_adapter: Callable[..., Path]
) -> None:
    model = load_base(ModelSpec(path=str(tiny_model_dir))).model
    attach(model, make_adapter(2))
    (first, *_), *_ = padded(model, PROMPTS, 20, [259], pad=3)
    ends = [first, 259]
    answers = padded(model, PROMPTS, 20, ends, pad=3)
    assert len(set(map(len, answers))) > 1
    assert not any(set(ends) & {*ids} for ids in answers), "the end is no part of an answer"
    assert batched(model, PROMPTS, 20, ends, 3, lambda: None) == answers


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma2", "mamba"])
def test_what_cannot_be_batched_is_padded(build_model: Callable[..., Any], family: str) -> None:
    changes = {"head_dim": 8, "num_key_value_heads": 2} if family == "gemma2" else {}
    model = build_model(family, **changes)
    assert batched(model, PROMPTS, 6, [2], 3, lambda: None) is None
    alone = [padded(model, [prompt], 6, [2], pad=0)[0] for prompt in PROMPTS]
    assert padded(model, PROMPTS, 6, [2], pad=0) == alone
