"""Adapters of a mixture's own experts in the engine: who gets which tokens."""

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import EXPERTS, ON_EXPERTS, write_adapter, write_mixture
from tests.workers.engine.generated import generated
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import AdapterRef, Limits, Sampling
from workers.models.base import load_base

LIMITS = Limits(
    max_batch_tokens=48, cache_tokens=640, max_new_tokens=64, max_queued=16, max_adapters=3
)
PROMPTS = [tuple(range(7, 7 + 3 * length)) for length in range(1, 13)]
GREEDY = Sampling(max_tokens=12, temperature=0.0)
alone = partial(generated, longest=GREEDY.max_tokens)
SHAPES: dict[str, dict[str, Any]] = {
    "experts": {"target_modules": ()},
    "inner": {"target_parameters": EXPERTS[:1], "rank": 6, "target_modules": ["q_proj", "o_proj"]},
    "one layer": {"target_parameters": r"layers\.1\..*", "target_modules": ()},
    "linears": {"target_parameters": ()},
    "routed": {"target_parameters": (), "num_experts": 3, "top_k": 2, "experts": "linear"},
}


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe", "gpt_oss"])
def mixture(
    request: pytest.FixtureRequest, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_mixture(tiny_model_dir, tmp_path_factory.mktemp("mixture"), request.param)


@pytest.fixture(scope="module")
def engine(mixture: Path) -> Iterator[ContinuousEngine]:
    # gpt-oss has no other attention
    spec = ModelSpec(path=str(mixture), device="cpu", attention="eager")
    engine = ContinuousEngine(load_base(spec), LIMITS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def adapters(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, AdapterRef]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: AdapterRef(
            name, str(write_adapter(mixture, folder / name, seed, **{**ON_EXPERTS, **shape}))
        )
        for seed, (name, shape) in enumerate(SHAPES.items())
    }


def answers(
    engine: ContinuousEngine, asked: list[tuple[tuple[int, ...], AdapterRef | None]]
) -> list[list[int]]:
    """Asked for together."""

    async def answer(prompt: tuple[int, ...], adapter: AdapterRef | None) -> list[int]:
        pieces = engine.generate(prompt, adapter, GREEDY, ())
        return [token async for piece in pieces for token in piece.tokens]

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(answer(*one) for one in asked))

    return asyncio.run(asyncio.wait_for(together(), 300))


def test_a_mixed_batch_gives_what_each_adapter_gives_alone(
    engine: ContinuousEngine, mixture: Path, adapters: dict[str, AdapterRef]
) -> None:
    """Two rounds with other adapters: those of the first make room for those of the second."""
    rounds = [("experts", "inner", "linears"), ("routed", "one layer", "experts")]
    for names in rounds:
        choices = [None, *(adapters[name] for name in names)]
        asked = [(prompt, choices[i % 4]) for i, prompt in enumerate(PROMPTS)]
        found = answers(engine, asked)
        for (prompt, adapter), tokens in zip(asked, found, strict=True):
            assert tokens == alone(mixture, adapter, prompt), adapter
        assert len({tuple(tokens) for tokens in found}) > 6


def test_the_last_one_leaves_the_base_as_it_was(
    engine: ContinuousEngine, mixture: Path, adapters: dict[str, AdapterRef]
) -> None:
    engine.load(adapters["experts"])
    for name in SHAPES:
        engine.unload(name)
    prompt = PROMPTS[3]
    assert answers(engine, [(prompt, None)]) == [alone(mixture, None, prompt)]
