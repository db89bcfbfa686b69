"""The engine on a real tiny model with real adapters: who gets which tokens, and what survives."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.engine.generated import generated
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import AdapterRef, Limits, RequestError, Sampling
from workers.injection.inject import row_map
from workers.models.attention import BY_SEQUENCE
from workers.models.base import Base, load_base

LIMITS = Limits(
    max_batch_tokens=48, cache_tokens=640, max_new_tokens=64, max_queued=8, max_adapters=2
)
PROMPTS = [tuple(range(7, 7 + 3 * length)) for length in range(1, 13)]
GREEDY = Sampling(max_tokens=24, temperature=0.0)
alone = partial(generated, longest=GREEDY.max_tokens)


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path]) -> list[AdapterRef]:
    """A MixLoRA, a MoELoRA and a plain LoRA."""
    shapes: list[dict[str, Any]] = [
        {"dropout": 0.3},
        {"experts": "linear", "rank": 2},
        {"num_experts": 1, "top_k": 1},
    ]
    return [
        AdapterRef(f"home@{seed}", str(make_adapter(seed, **shape)))
        for seed, shape in enumerate(shapes)
    ]


def load(folder: Path) -> Base:
    return load_base(ModelSpec(path=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Iterator[ContinuousEngine]:
    engine = ContinuousEngine(load(tiny_model_dir), LIMITS)
    yield engine
    engine.close()


@pytest.fixture
def base(tiny_model_dir: Path) -> Base:
    """A base that a test may break."""
    return load(tiny_model_dir)


@pytest.fixture
def fragile(base: Base) -> Iterator[ContinuousEngine]:
    """An engine on it."""
    before = set(threading.enumerate())
    engine = ContinuousEngine(base, LIMITS)
    yield engine
    engine.close()
    assert not set(threading.enumerate()) - before


async def answer(
    engine: ContinuousEngine,
    prompt: tuple[int, ...],
    adapter: AdapterRef | None = None,
    sampling: Sampling = GREEDY,
    generated: tuple[int, ...] = (),
) -> list[int]:
    pieces = engine.generate(prompt, adapter, sampling, generated)
    return [token async for piece in pieces for token in piece.tokens]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_mixed_batch_gives_what_each_adapter_gives_alone(
    engine: ContinuousEngine, tiny_model_dir: Path, adapters: list[AdapterRef]
) -> None:
    # Prompts of 3 to 36 tokens against a batch of 48: prefills are split and mixed with decoding.
    choices = [None, *adapters[:2]]
    asked = [(prompt, choices[i % 3]) for i, prompt in enumerate(PROMPTS)]

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(answer(engine, p, a) for p, a in asked))

    answers = run(together())
    for (prompt, adapter), tokens in zip(asked, answers, strict=True):
        assert tokens == alone(tiny_model_dir, adapter, prompt), adapter
    assert len({tuple(tokens) for tokens in answers}) > 6


def test_a_requests_own_end_ends_its_answer_alone(engine: ContinuousEngine) -> None:
    whole = run(answer(engine, PROMPTS[4]))
    end = whole[5]
    ending = GREEDY.model_copy(update={"ends": (end,)})
    until = whole[: whole.index(end) + 1]

    async def both() -> list[Any]:
        async def ended() -> list[Any]:
            return [one async for one in engine.generate(PROMPTS[4], None, ending, ())]

        return await asyncio.gather(ended(), answer(engine, PROMPTS[4]))

    pieces, other = run(both())
    assert [token for piece in pieces for token in piece.tokens] == until
    assert pieces[-1].finish == "stop"
    assert other == whole
    assert run(answer(engine, PROMPTS[4], None, ending, tuple(until))) == []


def test_adapters_of_all_shapes_and_the_base_share_a_batch(
    base: Base, tiny_model_dir: Path, make_adapter: Callable[..., Path]
) -> None:
    """Other numbers of experts and slots, other ranks, other places: each as generate() alone."""
    shapes: list[dict[str, Any]] = [
        {"num_experts": 8, "top_k": 1, "rank": 2},
        {"num_experts": (2, 6), "top_k": 2, "rank": 8},
        {"num_experts": 3, "top_k": 3, "rank": 4, "target_modules": ("down_proj", "q_proj")},
    ]
    choices = [
        None,
        *(AdapterRef(f"s@{n}", str(make_adapter(90 + n, **s))) for n, s in enumerate(shapes)),
    ]
    asked = [(prompt, choices[i % 4]) for i, prompt in enumerate(PROMPTS)]
    engine = ContinuousEngine(base, LIMITS.model_copy(update={"max_adapters": 3, "max_queued": 16}))

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(answer(engine, p, a) for p, a in asked))

    try:
        answers = run(together())
    finally:
        engine.close()
    for (prompt, adapter), tokens in zip(asked, answers, strict=True):
        assert tokens == alone(tiny_model_dir, adapter, prompt), adapter


def test_versions_that_change_under_load_never_mix(
    base: Base, tiny_model_dir: Path, make_adapter: Callable[..., Path]
) -> None:
    """24 requests while three versions follow one another, the former ones dropped at once."""
    versions = [AdapterRef(f"v@{n}", str(make_adapter(60 + n))) for n in range(3)]
    wanted = {v.slot: alone(tiny_model_dir, v, PROMPTS[4]) for v in versions}
    engine = ContinuousEngine(base, LIMITS.model_copy(update={"max_adapters": 3, "max_queued": 32}))

    async def main() -> list[tuple[str, list[int]]]:
        asked: list[tuple[str, asyncio.Task[list[int]]]] = []
        for number in range(24):
            version = versions[number // 2 % 3]
            task = asyncio.create_task(answer(engine, PROMPTS[4], version))
            asked.append((version.slot, task))
            await asyncio.sleep(0.02)
            if number % 2:
                await asyncio.to_thread(engine.unload, version.slot)
        return [(slot, await task) for slot, task in asked]

    try:
        told = run(main())
    finally:
        engine.close()
    assert len(told) == 24
    assert all(tokens == wanted[slot] for slot, tokens in told)
    assert len({tuple(tokens) for tokens in wanted.values()}) == 3


def test_the_same_prompt_at_the_same_time_keeps_to_its_own_adapter(
    engine: ContinuousEngine, tiny_model_dir: Path, adapters: list[AdapterRef]
) -> None:
    prompt = tuple(range(40, 104))  # two whole cache pages: a shared prefix would show

    async def together() -> list[list[int]]:
        first = await answer(engine, prompt)
        return [
            first,
            *await asyncio.gather(*(answer(engine, prompt, a) for a in [*adapters[:2], None])),
        ]

    base_first, one, two, base_again = run(together())
    assert base_first == base_again == alone(tiny_model_dir, None, prompt)
    assert one == alone(tiny_model_dir, adapters[0], prompt)
    assert two == alone(tiny_model_dir, adapters[1], prompt)
    assert len({tuple(base_first), tuple(one), tuple(two)}) == 3


def test_loading_and_evicting_disturbs_no_running_request(
    engine: ContinuousEngine, tiny_model_dir: Path, adapters: list[AdapterRef]
) -> None:
    """Three adapters in two slots while a request of the first one generates."""
    wanted = [alone(tiny_model_dir, adapter, PROMPTS[3]) for adapter in adapters]

    async def main() -> list[list[int]]:
        long = Sampling(max_tokens=64, temperature=0.0)
        held = asyncio.create_task(answer(engine, PROMPTS[3], adapters[0], long))
        others = []
        for adapter in [adapters[1], adapters[2]] * 4:  # each load evicts the other one
            others.append(await answer(engine, PROMPTS[3], adapter))
        return [(await held)[: GREEDY.max_tokens], *others]

    assert run(main()) == [wanted[0], *[wanted[1], wanted[2]] * 4]


def test_more_adapters_at_once_than_slots_is_429(
    engine: ContinuousEngine, adapters: list[AdapterRef]
) -> None:
    async def main() -> None:
        long = Sampling(max_tokens=64, temperature=0.0)
        streams = [engine.generate(PROMPTS[0], adapter, long) for adapter in adapters[:2]]
        for stream in streams:
            await anext(stream)
        with pytest.raises(RequestError, match="slots are in use") as caught:
            await answer(engine, PROMPTS[0], adapters[2])
        assert caught.value.status == 429
        for stream in streams:
            await stream.aclose()
        assert await answer(engine, PROMPTS[0], adapters[2])

    run(main())


def test_a_request_for_another_version_drives_out_none_that_is_to_be_kept(
    fragile: ContinuousEngine, adapters: list[AdapterRef]
) -> None:
    first, second, third = adapters

    async def main() -> None:
        fragile.keep([first.slot])
        fragile.load(first)
        for adapter in (second, third, second):  # `first` is idle, and used longest ago
            assert await answer(fragile, PROMPTS[0], adapter)
            assert first.slot in fragile.loaded()
        fragile.keep([first.slot, second.slot])
        with pytest.raises(RequestError, match="slots are in use") as caught:
            await answer(fragile, PROMPTS[0], third)
        assert caught.value.status == 429
        fragile.keep([first.slot, second.slot, third.slot])  # more than there is room for
        assert await answer(fragile, PROMPTS[0], third)
        fragile.keep([second.slot])
        fragile.load(second)
        assert await answer(fragile, PROMPTS[0], first)
        assert set(fragile.loaded()) == {first.slot, second.slot}

    run(main())


@pytest.mark.parametrize(
    ("prompt", "fields", "param"),
    [
        ((), {}, "prompt"),
        ((5, -1), {}, "prompt"),
        ((5, 260), {}, "prompt"),
        ((5,) * 500, {"max_tokens": 20}, "max_tokens"),
        ((5,), {"max_tokens": 65}, "max_tokens"),
    ],
)
def test_what_would_end_the_generation_thread_is_refused(
    engine: ContinuousEngine, prompt: tuple[int, ...], fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        run(answer(engine, prompt, None, GREEDY.model_copy(update=fields)))
    assert (caught.value.param, caught.value.status) == (param, 400)
    assert run(answer(engine, PROMPTS[0]))


def test_a_damaged_adapter_is_refused_and_the_engine_goes_on(
    engine: ContinuousEngine, adapters: list[AdapterRef], tmp_path: Path
) -> None:
    for adapter in (AdapterRef("no@1", str(tmp_path / "none")), AdapterRef("no@2", str(tmp_path))):
        with pytest.raises(InputError):
            engine.load(adapter)
        with pytest.raises(InputError):
            run(answer(engine, PROMPTS[0], adapter))
    assert run(answer(engine, PROMPTS[0], adapters[0]))


def test_the_seed_repeats_an_answer_in_any_company(engine: ContinuousEngine) -> None:
    sampling = Sampling(max_tokens=24, temperature=1.0, top_p=0.9, seed=11)

    async def main() -> list[list[int]]:
        once = await answer(engine, PROMPTS[2], None, sampling)
        company = [answer(engine, prompt) for prompt in PROMPTS[:5]]
        again, *_ = await asyncio.gather(answer(engine, PROMPTS[2], None, sampling), *company)
        other = await answer(engine, PROMPTS[2], None, sampling.model_copy(update={"seed": 12}))
        resumed = await answer(engine, PROMPTS[2], None, sampling, tuple(once[:9]))
        return [once, again, once[:9] + resumed, other]

    once, again, resumed, other = run(main())
    assert once == again == resumed != other


def test_a_finished_answer_from_elsewhere_needs_no_token(engine: ContinuousEngine) -> None:
    assert run(answer(engine, PROMPTS[0], None, GREEDY, (9,) * GREEDY.max_tokens)) == []
    assert run(answer(engine, PROMPTS[0], None, GREEDY, (9, 2))) == []


def test_closing_a_stream_frees_its_share_for_the_next(engine: ContinuousEngine) -> None:
    """Each request fills the cache alone, so the second waits until the first is closed."""
    whole = tuple([9] * 448)

    async def main() -> None:
        long = Sampling(max_tokens=64, temperature=0.0)
        first = engine.generate(whole, None, long)
        await anext(first)
        second = asyncio.create_task(answer(engine, whole, None, long))
        await asyncio.sleep(0.1)
        assert not second.done()
        await first.aclose()
        assert len(await second) == 64

    run(main())


def test_a_cancelled_request_gives_back_its_cache_and_its_adapter(
    fragile: ContinuousEngine, base: Base, adapters: list[AdapterRef]
) -> None:
    async def main() -> None:
        long = Sampling(max_tokens=64, temperature=0.0)
        seen: list[int] = []
        stream = fragile.generate(tuple([9] * 448), adapters[0], long)
        reading = asyncio.create_task(_tokens(stream, seen))
        while not seen:
            await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await stream.aclose()
        assert len(seen) < 64
        await asyncio.to_thread(fragile.unload, adapters[0].slot)
        assert adapters[0].slot not in row_map(base.model).slots
        assert len(await answer(fragile, tuple([8] * 448), None, long)) == 64

    run(main())


def test_a_full_queue_is_429(engine: ContinuousEngine) -> None:
    async def main() -> list[Any]:
        asked = [answer(engine, tuple([9] * 448)) for _ in range(12)]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = run(main())
    refused = [a for a in answers if isinstance(a, RequestError)]
    assert [error.status for error in refused] == [429] * 3  # one runs, eight wait
    assert len([a for a in answers if isinstance(a, list)]) == 9


class Bomb:
    """Raises inside the model on chosen forward passes."""

    def __init__(
        self,
        base: Base,
        explodes: Callable[[torch.Tensor], bool],
        error: Exception = RuntimeError("boom"),  # noqa: B008 (raised, never changed)
    ) -> None:
        self.count = 0
        self._explodes, self._error = explodes, error
        base.model.get_input_embeddings().register_forward_pre_hook(self)

    def __call__(self, _: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        if self._explodes(args[0]):
            self.count += 1
            raise self._error


def test_a_dead_generation_thread_is_replaced_and_no_answer_changes(
    fragile: ContinuousEngine, base: Base, tiny_model_dir: Path, adapters: list[AdapterRef]
) -> None:
    """Twice, each time when nobody could be the one to blame, which hangs on who comes when."""

    def together_and_proven(_: torch.Tensor) -> bool:
        loop = fragile._loop
        running = [*loop._running.values()]
        proven = len(running) > 1 and all(one.proven for one in running)
        return bomb.count < 2 and proven and not loop._waiting

    bomb = Bomb(base, together_and_proven)
    asked = [(PROMPTS[i], [None, *adapters[:2]][i % 3]) for i in range(6)]

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(answer(fragile, p, a) for p, a in asked))

    answers = run(together())
    assert bomb.count == 2
    assert fragile.healthy
    assert answers == [alone(tiny_model_dir, adapter, prompt) for prompt, adapter in asked]


def test_the_event_loop_is_free_while_the_thread_is_replaced(
    fragile: ContinuousEngine, base: Base, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new thread's cache takes long to make: who comes, leaves or looks must not wait for it."""
    start, begun, go = fragile._loop._start, threading.Event(), threading.Event()

    def slow() -> Any:
        begun.set()
        assert go.wait(30), "the event loop stands"
        return start()

    monkeypatch.setattr(fragile._loop, "_start", slow)
    once = iter([True])
    Bomb(base, lambda ids: next(once, False))

    async def together() -> list[list[int]]:
        asked = [asyncio.create_task(answer(fragile, PROMPTS[0]))]
        while not begun.is_set():
            await asyncio.sleep(0.01)
        asked += [asyncio.create_task(answer(fragile, prompt)) for prompt in PROMPTS[1:3]]
        while fragile.statistics().waiting < 3:
            await asyncio.sleep(0.01)
        asked.pop().cancel()
        while fragile.statistics().waiting > 2:
            await asyncio.sleep(0.01)
        go.set()
        return await asyncio.gather(*asked)

    assert run(together()) == [alone(tiny_model_dir, None, prompt) for prompt in PROMPTS[:2]]
    assert fragile.healthy


def test_who_waits_is_told_when_no_other_thread_can_be_started(
    fragile: ContinuousEngine, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise MemoryError("no room for another cache")

    monkeypatch.setattr(fragile._loop, "_start", broken)
    Bomb(base, lambda ids: True)

    async def together() -> list[Any]:
        asking = (answer(fragile, prompt) for prompt in PROMPTS[:3])
        return await asyncio.gather(*asking, return_exceptions=True)

    told = run(together())
    assert all(isinstance(one, RequestError) and one.status == 503 for one in told)
    assert not fragile.healthy


@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), torch.OutOfMemoryError("out of memory"), MemoryError("none")]
)
def test_only_the_request_that_kills_the_thread_fails(
    fragile: ContinuousEngine, base: Base, tiny_model_dir: Path, error: Exception
) -> None:
    poison = 199
    Bomb(base, lambda ids: bool((ids == poison).any()), error)
    asked = [*PROMPTS[:5], (5, poison, 6)]

    async def together() -> list[Any]:
        return await asyncio.gather(*(answer(fragile, p) for p in asked), return_exceptions=True)

    *good, bad = run(together())
    assert good == [alone(tiny_model_dir, None, prompt) for prompt in PROMPTS[:5]]
    assert isinstance(bad, RequestError)
    assert (bad.status, bad.code) == (500, "engine_error")
    assert fragile.healthy


def test_who_is_there_when_others_kill_the_thread_is_not_to_blame(
    fragile: ContinuousEngine, base: Base
) -> None:
    """Each survives its first pass alone, and the thread dies when both go on together."""
    Bomb(base, lambda ids: ids.shape[-1] == 2)

    async def together() -> list[Any]:
        asking = (answer(fragile, prompt) for prompt in PROMPTS[3:5])
        return await asyncio.gather(*asking, return_exceptions=True)

    told = [one for one in run(together()) if isinstance(one, RequestError)]
    assert told
    assert {(one.status, one.code) for one in told} == {(503, "engine_stopped")}
    assert fragile.healthy


def test_a_schema_that_never_ends_is_the_requests_own_fault(fragile: ContinuousEngine) -> None:
    """The grammar errs in the middle of the answer; others read on from the same cache."""
    endless = Sampling(
        max_tokens=24, json_schema='{"type": "array", "items": {"$ref": "#"}, "minItems": 1}'
    )

    async def together() -> list[Any]:
        asked = (answer(fragile, PROMPTS[5], None, one) for one in (endless, GREEDY))
        return await asyncio.gather(*asked, return_exceptions=True)

    refused, good = run(together())
    assert isinstance(refused, RequestError)
    assert (refused.status, refused.code) == (400, "invalid_schema")
    assert len(good) == 24


def test_poison_of_all_kinds_at_once_changes_nobodys_answer(
    fragile: ContinuousEngine, base: Base, tiny_model_dir: Path, adapters: list[AdapterRef]
) -> None:
    poison = 199
    Bomb(base, lambda ids: bool((ids == poison).any()), torch.OutOfMemoryError("out of memory"))
    asked = list(zip(PROMPTS[:5], [None, *adapters[:2], None, adapters[0]], strict=True))
    wide = Sampling(max_tokens=9, temperature=1.0, top_k=10**9, seed=4)

    async def together() -> list[Any]:
        bad = [
            answer(fragile, (5, poison)),
            answer(fragile, (5, 10**9)),
            answer(fragile, (-1,)),
            answer(fragile, ()),
            answer(fragile, (5,) * 5000),
            answer(fragile, (5,), AdapterRef("no@1", "/nowhere")),
            answer(fragile, (5,), None, Sampling(max_tokens=9, json_schema="{")),
        ]
        good = [answer(fragile, prompt, adapter) for prompt, adapter in asked]
        fine = answer(fragile, PROMPTS[5], None, wide)
        return await asyncio.gather(*good, fine, *bad, return_exceptions=True)

    told = run(together())
    for (prompt, adapter), tokens in zip(asked, told, strict=False):
        assert tokens == alone(tiny_model_dir, adapter, prompt)
    assert len(told[5]) == 9
    assert all(isinstance(error, InputError) for error in told[6:])
    assert fragile.healthy


def test_an_exception_inside_one_adapters_layer_fails_its_requests_alone(
    fragile: ContinuousEngine, base: Base, tiny_model_dir: Path, adapters: list[AdapterRef]
) -> None:
    for adapter in adapters[:2]:
        fragile.load(adapter)

    def boom(*_: Any) -> None:
        raise RuntimeError("a layer is broken")

    [layer] = [
        module
        for name, module in base.model.named_modules()
        if name.endswith(f"layers.1.mlp.adapters.slot_{adapters[0].slot.encode().hex()}")
    ]
    layer.router.register_forward_pre_hook(boom)
    layer.banks = boom
    choices = [None, adapters[1], adapters[0], None, adapters[1]]
    asked = list(zip(PROMPTS, choices, strict=False))

    async def together() -> list[Any]:
        asking = (answer(fragile, prompt, adapter) for prompt, adapter in asked)
        return await asyncio.gather(*asking, return_exceptions=True)

    for (prompt, adapter), told in zip(asked, run(together()), strict=True):
        if adapter is adapters[0]:
            assert isinstance(told, RequestError)
            assert told.code == "engine_error"
        else:
            assert told == alone(tiny_model_dir, adapter, prompt)


def poison(base: Base) -> tuple[int, ...]:
    """A prompt whose activations are no numbers from now on."""
    token = 199

    def overflow(_: Any, args: tuple[torch.Tensor], embedded: torch.Tensor) -> torch.Tensor:
        return embedded.masked_fill((args[0] == token).unsqueeze(-1), torch.nan)

    base.model.get_input_embeddings().register_forward_hook(overflow)
    return (*range(40, 70), token, *range(70, 80))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_that_are_not_finite_fail_their_request_alone_on_a_gpu(
    tiny_model_dir: Path, adapters: list[AdapterRef], dtype: str
) -> None:
    base = load_base(ModelSpec.model_validate({"path": str(tiny_model_dir), "dtype": dtype}))
    bad = poison(base)
    asked = [(bad if i % 2 else PROMPTS[i], [None, *adapters[:2]][i % 3]) for i in range(6)]
    engine = ContinuousEngine(base, LIMITS)

    async def together() -> list[Any]:
        asking = (answer(engine, prompt, adapter) for prompt, adapter in asked)
        return await asyncio.gather(*asking, return_exceptions=True)

    try:
        assert base.model.config._attn_implementation == BY_SEQUENCE
        for (prompt, _), told in zip(asked, run(together()), strict=True):
            if prompt is bad:
                assert isinstance(told, RequestError)
                assert told.code == "non_finite"
            else:
                assert isinstance(told, list)
    finally:
        engine.close()


def test_logits_that_are_not_finite_fail_their_request_alone(
    fragile: ContinuousEngine, base: Base, tiny_model_dir: Path, adapters: list[AdapterRef]
) -> None:
    """Activations of one prompt overflow: what it leaves in batch and cache harms nobody."""
    bad = poison(base)
    asked = [(bad if i % 2 else PROMPTS[i], [None, *adapters[:2]][i % 3]) for i in range(6)]

    async def together() -> list[Any]:
        asking = (answer(fragile, prompt, adapter) for prompt, adapter in asked)
        return await asyncio.gather(*asking, return_exceptions=True)

    for _ in range(3):  # the second round meets the cache that the first one left
        for (prompt, adapter), told in zip(asked, run(together()), strict=True):
            if prompt is bad:
                assert isinstance(told, RequestError)
                assert (told.status, told.code) == (500, "non_finite")
            else:
                assert told == alone(tiny_model_dir, adapter, prompt)


@pytest.mark.parametrize(
    "shape",
    [{}, {"routing": "top_p"}, {"experts": "linear"}, {"num_experts": 1, "top_k": 1}],
    ids=str,
)
def test_an_adapter_that_overflows_fails_its_requests_alone(
    fragile: ContinuousEngine,
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    shape: dict[str, Any],
) -> None:
    """Beside the base and an adapter of fewer experts and slots, in prefills and decoding."""
    wide = {"num_experts": 6, "top_k": 3} | shape
    broken = AdapterRef("broken@1", str(make_adapter(5, spread=1e30, **wide)))
    fewer = {"num_experts": 2, "top_k": 1} if wide["num_experts"] > 1 else {"rank": 2}
    sound = AdapterRef("sound@1", str(make_adapter(6, **shape | fewer)))
    for adapter in (broken, sound):
        fragile.load(adapter)
    asked = [(PROMPTS[i], [None, sound, broken][i % 3]) for i in range(9)]

    async def together() -> list[Any]:
        asking = (answer(fragile, prompt, adapter) for prompt, adapter in asked)
        return await asyncio.gather(*asking, return_exceptions=True)

    for (prompt, adapter), told in zip(asked, run(together()), strict=True):
        if adapter is broken:
            assert isinstance(told, RequestError)
            assert told.code == "non_finite"
        else:
            assert told == alone(tiny_model_dir, adapter, prompt)


def test_a_request_that_takes_too_long_is_504_and_frees_its_place(base: Base) -> None:
    limits = LIMITS.model_copy(update={"request_seconds": 3})
    engine = ContinuousEngine(base, limits)

    def slow(*_: Any) -> None:
        time.sleep(0.2)

    hook = base.model.get_input_embeddings().register_forward_pre_hook(slow)

    async def main() -> None:
        long = Sampling(max_tokens=64, temperature=0.0)
        with pytest.raises(RequestError) as caught:
            await answer(engine, tuple([9] * 448), None, long)
        assert (caught.value.status, caught.value.code) == (504, "timeout")
        hook.remove()
        assert len(await answer(engine, tuple([9] * 448), None, GREEDY)) == 24

    try:
        run(main())
    finally:
        engine.close()


async def _tokens(stream: AsyncIterator[Any], seen: list[int]) -> None:
    async for piece in stream:
        seen += piece.tokens


@pytest.mark.parametrize("reading", [False, True], ids=["between pieces", "while one is awaited"])
def test_an_answer_ends_where_it_is_aborted(
    engine: ContinuousEngine, adapters: list[AdapterRef], reading: bool
) -> None:
    """Its last piece has no tokens and tells the routing; who is named otherwise goes on."""
    long = Sampling(max_tokens=64, temperature=0.0)

    async def main() -> tuple[list[Any], list[Any]]:
        first = engine.generate(PROMPTS[0], adapters[0], long, request_id="first")
        other = engine.generate(PROMPTS[1], adapters[0], long, request_id="other")
        pieces = [await anext(first), await anext(first)]
        if reading:
            rest = asyncio.create_task(_all(first))
            await asyncio.sleep(0)
        engine.abort("first")
        engine.abort("nobody")
        engine.abort("")
        pieces += await (rest if reading else _all(first))
        engine.abort("first")  # it has ended
        return pieces, await _all(other)

    pieces, others = run(main())
    assert pieces[-1].finish == "stop"
    assert pieces[-1].tokens == ()
    assert pieces[-1].routing.tokens >= len(PROMPTS[0])
    assert sum(len(piece.tokens) for piece in pieces) < long.max_tokens
    assert sum(len(piece.tokens) for piece in others) == long.max_tokens
    assert not engine.statistics().running


async def _all(pieces: AsyncIterator[Any]) -> list[Any]:
    return [piece async for piece in pieces]


def test_closing_the_engine_ends_every_request(base: Base) -> None:
    engine = ContinuousEngine(base, LIMITS)

    async def main() -> None:
        seen: list[int] = []
        stream = engine.generate(PROMPTS[0], None, Sampling(max_tokens=64, temperature=0.0))
        task = asyncio.create_task(_tokens(stream, seen))
        while not seen:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(engine.close)
        with pytest.raises(RequestError, match="stopped") as caught:
            await task
        assert (caught.value.status, caught.value.code) == (503, "engine_stopped")
        with pytest.raises(RequestError, match="stopped"):
            await answer(engine, PROMPTS[0])

    run(main())
    assert not engine.healthy


def test_a_cache_that_does_not_fit_is_an_input_error(base: Base) -> None:
    with pytest.raises(InputError, match="memory"):
        ContinuousEngine(base, Limits(cache_tokens=10**12))


def test_an_adapter_that_is_unloaded_answers_to_its_last_request(
    fragile: ContinuousEngine, base: Base, tiny_model_dir: Path, adapters: list[AdapterRef]
) -> None:
    held = adapters[0]

    async def main() -> list[int]:
        fragile.load(held)
        stream = fragile.generate(PROMPTS[3], held, GREEDY)
        tokens = list((await anext(stream)).tokens)
        await asyncio.to_thread(fragile.unload, held.slot)
        assert held.slot not in fragile.loaded()
        assert held.slot in row_map(base.model).slots
        tokens += [token async for piece in stream for token in piece.tokens]
        async with asyncio.timeout(10):
            while held.slot in row_map(base.model).slots:
                await asyncio.sleep(0.01)
        return tokens

    assert run(main()) == alone(tiny_model_dir, held, PROMPTS[3])
    fragile.unload(held.slot)
    assert run(answer(fragile, PROMPTS[3], held)) == alone(tiny_model_dir, held, PROMPTS[3])
    assert held.slot in fragile.loaded()
