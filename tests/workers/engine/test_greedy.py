"""Greedy answers in continuous batches, against `generate()` of one row at a time in float32."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random, getstate
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from workers.adapter.files import attach
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.engine.greedy import greedy
from workers.injection.askers import Askers
from workers.injection.inject import row_map
from workers.models.base import load_base

LONGEST = 16
PROMPTS = [tuple(Random(n).choices(range(3, 64), k=1 + 7 * n)) for n in range(7)]


@pytest.fixture
def model(tiny_model_dir: Path) -> PreTrainedModel:
    return load_base(ModelSpec(path=str(tiny_model_dir))).model


@torch.no_grad()
def one_by_one(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], longest: int, ends: Sequence[int]
) -> list[list[int]]:
    config = GenerationConfig(
        do_sample=False, max_new_tokens=longest, eos_token_id=list(ends) or [-1], pad_token_id=0
    )
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        answers.append(whole[0, len(prompt) :].tolist())
    return answers


def some_ends(answers: Sequence[Sequence[int]]) -> list[int]:
    """Tokens that end about half of these answers, at different lengths."""
    return sorted({answer[3 * n] for n, answer in enumerate(answers[:6])})


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_it_is_what_generate_gives(
    model: PreTrainedModel, make_adapter: Callable[..., Path], rows: int
) -> None:
    attach(model, make_adapter(2))  # the bare one says the same token again and again
    ends = some_ends(one_by_one(model, PROMPTS, LONGEST, ()))
    expected = one_by_one(model, PROMPTS, LONGEST, ends)
    lengths = {len(answer) for answer in expected}
    assert len(lengths) > 3, "answers that end together prove nothing"
    assert greedy(model, PROMPTS, LONGEST, ends, rows) == expected
    assert greedy(model, PROMPTS, LONGEST, (), rows) == one_by_one(model, PROMPTS, LONGEST, ())


@pytest.mark.parametrize(
    "shape",
    [
        {"routing": "top_p", "top_p": 0.7},
        {"routing": "switch", "top_k": 1, "expert_capacity": 2},
        {"experts": "linear"},
        {"num_experts": 1, "top_k": 1},
    ],
    ids=lambda shape: "-".join(map(str, shape.values())),
)
def test_with_an_adapter_too(
    model: PreTrainedModel, make_adapter: Callable[..., Path], shape: dict[str, Any]
) -> None:
    bare = greedy(model, PROMPTS, LONGEST, (), 5)
    attach(model, make_adapter(1, **shape))
    answers = greedy(model, PROMPTS, LONGEST, (), 5)
    assert answers != bare
    assert answers == one_by_one(model, PROMPTS, LONGEST, ())


def test_of_every_family(build_model: Callable[..., Any], family: str) -> None:
    model = build_model(family)
    expected = one_by_one(model, PROMPTS, LONGEST, (5, 9))
    assert greedy(model, PROMPTS, LONGEST, (5, 9), 4) == expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_with_a_window(build_model: Callable[..., Any], family: str, attention: str) -> None:
    changes = {"head_dim": 8} if family == "gemma3_text" else {}
    model = build_model(family, sliding_window=16, num_key_value_heads=2, **changes)
    model.set_attn_implementation(attention)
    expected = one_by_one(model, PROMPTS, LONGEST, ())
    assert greedy(model, PROMPTS, LONGEST, (), 4) == expected
    assert model.config._attn_implementation == attention
    assert one_by_one(model, PROMPTS, LONGEST, ()) == expected, "the model is as it was"


def test_no_more_rows_are_under_way_than_are_allowed(model: PreTrainedModel) -> None:
    seen: list[int] = []
    passes: list[None] = []

    def look(_: object, __: object, options: dict[str, Any]) -> None:
        if "cu_seq_lens_q" in options:  # the first look at the model's attention has none
            seen.append(len(options["cu_seq_lens_q"]) - 1)

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    greedy(model, PROMPTS, 8, (), 3, lambda: passes.append(None))
    hook.remove()
    assert max(seen) == 3
    assert len(passes) == len(seen)


def test_prompts_that_begin_alike_are_read_once(model: PreTrainedModel) -> None:
    """And what several share is the same for all."""
    head = tuple(range(3, 60)) * 3
    prompts = [(*head, *prompt) for prompt in PROMPTS]
    tokens: list[int] = []

    def look(_: object, __: object, options: dict[str, Any]) -> None:
        tokens.append(options["input_ids"].numel())

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    answers = greedy(model, prompts, 4, (), 2)
    hook.remove()
    assert answers == one_by_one(model, prompts, 4, ())
    assert sum(tokens) < sum(map(len, prompts)) / 2


def test_what_fails_in_a_pass_fails_the_caller_and_leaves_the_model(
    model: PreTrainedModel,
) -> None:
    expected = greedy(model, PROMPTS, 4, (), 3)
    left = 3

    def fail() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise MemoryError("too much")

    with pytest.raises(MemoryError, match="too much"):
        greedy(model, PROMPTS, 4, (), 3, fail)
    assert not model._forward_pre_hooks
    assert model.config._attn_implementation == "sdpa"
    assert greedy(model, PROMPTS, 4, (), 3) == expected


def test_it_moves_no_draw(model: PreTrainedModel) -> None:
    """transformers seeds torch's generators anew when it sets up a batch: a run's dropout after an
    evaluation would be another one."""
    before = torch.get_rng_state(), getstate()
    greedy(model, PROMPTS, 4, (), 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert getstate() == before[1]


def test_a_model_that_cannot_be_batched_is_refused(build_model: Callable[..., Any]) -> None:
    model = build_model("gemma2", head_dim=8, num_key_value_heads=2)
    with pytest.raises(InputError, match="cannot be batched: the attention of Gemma2ForCausalLM"):
        greedy(model, PROMPTS, 4, (), 3)
    assert greedy(model, [], 4, (), 3) == []


@pytest.mark.parametrize("rows", [3, 64])
def test_prompts_of_several_adapters_are_answered_together(
    model: PreTrainedModel, make_adapter: Callable[..., Path], rows: int
) -> None:
    """Each by its own; two ask the same, and share no keys and values."""
    slots = ["one", "two", None]
    for seed, slot in enumerate(slots[:2]):
        attach(model, make_adapter(seed), slot=slot)
    whose = [slots[n % 3] for n in range(len(PROMPTS))] + ["one", "two"]
    prompts = [*PROMPTS, PROMPTS[5], PROMPTS[5]]
    expected = []
    for slot, prompt in zip(whose, prompts, strict=True):
        with row_map(model).everywhere(slot):
            expected += one_by_one(model, [prompt], LONGEST, ())
    assert expected[-1] != expected[-2]
    askers = Askers(row_map(model), whose)
    assert greedy(model, prompts, LONGEST, (), rows, askers=askers) == expected
