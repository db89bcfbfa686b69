"""Attention sequence by sequence gives what generate() gives, whatever the heads and windows."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from workers.config.base import InputError
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits, Sampling
from workers.models.attention import BY_SEQUENCE, check_attention
from workers.models.base import Base

SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "bos_token_id": 0,
}
LIMITS = Limits(max_batch_tokens=40, cache_tokens=768, max_new_tokens=24)
PROMPTS = [tuple(range(5, 5 + 7 * length)) for length in (1, 3, 4, 7, 10)]


def mistral(**fields: Any) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, **fields))


def hybrid() -> PreTrainedModel:
    """A layer with a window, and one without."""
    fields = {"sliding_window": 24, "use_sliding_window": True, "max_window_layers": 1}
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2, **fields))


MODELS = {
    "all heads": lambda: mistral(num_key_value_heads=8, sliding_window=None),
    "grouped heads": lambda: mistral(num_key_value_heads=2, sliding_window=None),
    "one head for all": lambda: mistral(num_key_value_heads=1, sliding_window=None),
    "a window": lambda: mistral(num_key_value_heads=4, sliding_window=24),
    "a window in some layers": hybrid,
}


@pytest.fixture(params=MODELS)
def base(request: pytest.FixtureRequest, tiny_model_dir: Path) -> Base:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MODELS[request.param]().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(3)  # so that attention has a say
    return Base(model, AutoTokenizer.from_pretrained(tiny_model_dir), torch.device("cpu"))


def test_every_request_of_a_batch_gets_what_generate_gives(base: Base) -> None:
    """Prompts are longer than a batch and than a window; some decode while others are read."""
    sampling = Sampling(max_tokens=12, temperature=0.0)
    wanted = []
    for prompt in PROMPTS:
        ids = base.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        wanted.append(ids[0, len(prompt) :].tolist())

    async def ask(engine: ContinuousEngine, prompt: tuple[int, ...]) -> list[int]:
        pieces = engine.generate(prompt, None, sampling)
        return [token async for piece in pieces for token in piece.tokens]

    async def together(engine: ContinuousEngine) -> list[list[int]]:
        return await asyncio.gather(*(ask(engine, prompt) for prompt in PROMPTS))

    engine = ContinuousEngine(base, LIMITS)
    try:
        assert base.model.config._attn_implementation == BY_SEQUENCE
        answers = asyncio.run(asyncio.wait_for(together(engine), 60))
    finally:
        engine.close()
    assert answers == wanted
    assert len({tuple(answer) for answer in answers}) > 2
    assert base.model.config._attn_implementation == "sdpa"


def gemma2(soft_cap: float | None) -> PreTrainedModel:
    """Without a cap it is as any other."""
    fields = {"num_key_value_heads": 2, "head_dim": 8, "attn_logit_softcapping": soft_cap}
    config = Gemma2Config(**SIZES, **fields, sliding_window=24)
    config._attn_implementation = "eager"  # its class has no other
    return Gemma2ForCausalLM(config).eval()


def test_a_soft_cap_is_refused_when_the_engine_starts(tiny_model_dir: Path) -> None:
    """The batches of transformers leave it out: what they give is not what the model gives."""
    model = gemma2(soft_cap=2.0)
    base = Base(model, AutoTokenizer.from_pretrained(tiny_model_dir), torch.device("cpu"))
    before = set(threading.enumerate())
    with pytest.raises(InputError, match="attention of Gemma2ForCausalLM has a soft cap") as caught:
        ContinuousEngine(base, LIMITS)
    assert "\n" not in str(caught.value)
    assert set(threading.enumerate()) == before
    assert model.config._attn_implementation == "eager"
    assert model(torch.tensor([PROMPTS[0]])).logits.isfinite().all(), "and is as it was"


def test_attention_that_is_no_part_of_the_interface_is_refused() -> None:
    """It would not see the cache, and answer without any error from the last token alone."""
    fields = {"vocab_size": 260, "hidden_size": 64, "n_layer": 2, "n_head": 8}
    with pytest.raises(InputError, match="BloomForCausalLM has code of its own"):
        check_attention(BloomForCausalLM(BloomConfig(**fields)).eval())


@pytest.mark.parametrize("build", [*MODELS.values(), lambda: gemma2(None)])
def test_other_attention_is_left_as_it_is(build: Callable[[], PreTrainedModel]) -> None:
    model = build().eval()
    before = model.config._attn_implementation
    check_attention(model)
    assert model.config._attn_implementation == before
