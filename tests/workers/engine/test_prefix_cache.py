"""What is shared of a prompt that was read before, and with whom."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.prefix_cache import PAGE
from workers.engine.request import AdapterRef, Asker, Limits, Piece, Sampling
from workers.models.base import load_base

LIMITS = Limits(max_batch_tokens=64, cache_tokens=512, max_new_tokens=32, max_adapters=2)
PROMPT = tuple(range(20, 20 + 3 * PAGE + 5))


class Engine:
    """An engine on the tiny model that counts the tokens which it computes."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        base = load_base(ModelSpec(path=str(folder), device="cpu"))
        self.engine = ContinuousEngine(base, LIMITS.model_copy(update=limits))
        self.tokens = 0
        base.model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, _: Any, args: tuple[torch.Tensor]) -> None:
        self.tokens += args[0].numel()

    async def pieces(
        self, prompt: tuple[int, ...], adapter: AdapterRef | None, tenant: str = "", **fields: Any
    ) -> list[Piece]:
        sampling = Sampling(max_tokens=8, temperature=0.0, **fields)
        told = self.engine.generate(prompt, adapter, sampling, asker=Asker(tenant))
        return [piece async for piece in told]

    async def ask(
        self, adapter: AdapterRef | None, prompt: tuple[int, ...] = PROMPT, tenant: str = ""
    ) -> tuple[list[int], int]:
        """The answer, and how many tokens of the prompt had to be read for it."""
        before = self.tokens
        pieces = await self.pieces(prompt, adapter, tenant)
        tokens = [token for piece in pieces for token in piece.tokens]
        return tokens, self.tokens - before - len(tokens) + 1


@pytest.fixture
def engine(tiny_model_dir: Path) -> Iterator[Engine]:
    engine = Engine(tiny_model_dir)
    yield engine
    engine.engine.close()


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path]) -> list[AdapterRef]:
    return [AdapterRef(f"home@{n}", str(make_adapter(80 + n))) for n in range(3)]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_prompt_is_read_once_for_each_slot_and_never_for_another(
    engine: Engine, adapters: list[AdapterRef]
) -> None:
    slots = [None, *adapters[:2]]

    async def main() -> list[list[tuple[list[int], int]]]:
        return [[await engine.ask(slot) for slot in slots] for _ in range(2)]

    first, again = run(main())
    assert [read for _, read in first] == [len(PROMPT)] * 3
    assert [read for _, read in again] == [5] * 3  # the last page is not whole
    assert [answer for answer, _ in again] == [answer for answer, _ in first]
    assert len({tuple(answer) for answer, _ in first}) == 3


def test_a_prompt_is_read_again_for_another_tenant_unless_they_share(
    engine: Engine, adapters: list[AdapterRef], tiny_model_dir: Path
) -> None:
    async def main(engine: Engine, adapter: AdapterRef | None) -> list[int]:
        asked = ["k-1", "k-2", "k-1", "k-2", ""]
        return [(await engine.ask(adapter, tenant=tenant))[1] for tenant in asked]

    whole = len(PROMPT)
    for adapter in (None, adapters[0]):
        assert run(main(engine, adapter)) == [whole, whole, 5, 5, whole]
    shared = Engine(tiny_model_dir, share_prefixes=True)
    try:
        for adapter in (None, adapters[0]):
            assert run(main(shared, adapter)) == [whole, 5, 5, 5, 5]
    finally:
        shared.engine.close()


def test_only_the_same_beginning_is_shared(engine: Engine) -> None:
    async def main() -> list[int]:
        await engine.ask(None)
        other_end = (*PROMPT[: 2 * PAGE], *range(7, 7 + PAGE))
        other_first = (9, *PROMPT[1:])
        return [(await engine.ask(None, p))[1] for p in (other_end, other_first)]

    assert run(main()) == [PAGE, len(PROMPT)]


def test_an_adapter_that_was_loaded_anew_shares_nothing_with_its_former_self(
    engine: Engine, adapters: list[AdapterRef]
) -> None:
    changed = AdapterRef(adapters[0].slot, adapters[1].folder)

    async def main() -> list[tuple[list[int], int]]:
        told = [await engine.ask(adapters[0]), await engine.ask(adapters[1])]
        await asyncio.to_thread(engine.engine.unload, adapters[0].slot)
        return [*told, await engine.ask(changed)]

    first, other, again = run(main())
    assert again == (other[0], len(PROMPT))
    assert first[0] != other[0]


def test_a_request_for_every_tokens_routing_reads_its_whole_prompt(
    engine: Engine, adapters: list[AdapterRef]
) -> None:
    async def main() -> tuple[list[Piece], list[Piece]]:
        await engine.ask(adapters[0])
        shared = await engine.pieces(PROMPT, adapters[0])
        return shared, await engine.pieces(PROMPT, adapters[0], by_token=True)

    shared, whole = (pieces[-1].routing for pieces in run(main()))
    assert shared.tokens == 5 + 7
    assert whole.tokens == len(whole.by_token) == len(PROMPT) + 7


def test_pages_that_wait_make_room_for_a_request(engine: Engine) -> None:
    """Prompts that fill the cache one after another: nobody waits for ever, nothing is wrong."""
    prompts = [tuple(n + i % 50 for i in range(13 * PAGE)) for n in (10, 70, 130)]

    async def main() -> list[tuple[list[int], int]]:
        return [await engine.ask(None, prompt) for prompt in [*prompts, *prompts]]

    told = run(main())
    assert [answer for answer, _ in told[:3]] == [answer for answer, _ in told[3:]]
    assert [read for _, read in told[:3]] == [len(prompts[0])] * 3


def test_many_at_once_share_while_they_run(engine: Engine, adapters: list[AdapterRef]) -> None:
    async def main() -> tuple[list[int], list[tuple[list[int], int]]]:
        alone = await engine.ask(adapters[0])
        together = await asyncio.gather(*(engine.ask(adapters[n % 2]) for n in range(6)))
        return alone[0], [answer for answer, _ in together]

    alone, together = run(main())
    assert together[0] == together[2] == together[4] == alone
    assert together[1] == together[3] == together[5] != alone
