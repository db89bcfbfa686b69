"""Adapters with an embedding and a head of their own in the engine: who gets which tokens."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.workers.engine.generated import generated
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import AdapterRef, Limits, Sampling
from workers.models.base import load_base

LIMITS = Limits(
    max_batch_tokens=48, cache_tokens=640, max_new_tokens=64, max_queued=16, max_adapters=4
)
PROMPTS = [tuple(range(7, 7 + 3 * length)) for length in range(1, 9)]
GREEDY = Sampling(max_tokens=8, temperature=0.0)
alone = partial(generated, longest=GREEDY.max_tokens)
ALSO = {"train_also": ["embed_tokens", "lm_head"]}


def test_a_mixed_batch_gives_what_each_adapter_gives_alone(
    tiny_model_dir: Path, make_adapter: Callable[..., Path]
) -> None:
    """Prompts are read while others draw, so that the head sees some tokens only."""
    plain = {"num_experts": 1, "top_k": 1}
    shapes = [{}, ALSO, {**ALSO, **plain}, {**plain, "train_tokens": tuple(range(20, 240))}]
    adapters = [
        AdapterRef(str(seed), str(make_adapter(seed, **shape))) for seed, shape in enumerate(shapes)
    ]
    asked = [(prompt, [None, *adapters][at % 5]) for at, prompt in enumerate(PROMPTS)]
    engine = ContinuousEngine(load_base(ModelSpec(path=str(tiny_model_dir), device="cpu")), LIMITS)

    async def answer(prompt: tuple[int, ...], adapter: AdapterRef | None) -> list[int]:
        pieces = engine.generate(prompt, adapter, GREEDY, ())
        return [token async for piece in pieces for token in piece.tokens]

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(answer(*one) for one in asked))

    try:
        found = asyncio.run(asyncio.wait_for(together(), 300))
    finally:
        engine.close()
    for (prompt, adapter), tokens in zip(asked, found, strict=True):
        assert tokens == alone(tiny_model_dir, adapter, prompt), adapter
    assert len({tuple(tokens) for tokens in found}) > 6
