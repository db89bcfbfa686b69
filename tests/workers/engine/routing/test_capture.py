"""Routing of each request as the engine tells it, against a plain forward pass with recorders."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from workers.adapter.files import load_into
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import AdapterRef, Limits, Sampling, TextRequest
from workers.engine.routing.types import LayerRouting, RequestRouting
from workers.engine.text_engine import TextEngine
from workers.injection.adapter import LayerRecord
from workers.models.base import load_base

LIMITS = Limits(max_batch_tokens=40, cache_tokens=1024, max_new_tokens=64)
SHAPES: list[dict[str, Any]] = [
    {"num_experts": 4, "top_k": 2, "rank": 4},
    {"num_experts": (3, 6), "top_k": 3, "rank": 2, "target_modules": ("up_proj", "gate_proj")},
    {"experts": "linear", "num_experts": 5, "rank": 2},
    {"num_experts": 4, "routing": "top_p", "top_p": 0.6},
    {"num_experts": 4, "gates": "residual"},
    {"num_experts": 4, "routing": "switch"},
    {"num_experts": 1, "top_k": 1},
]


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path]) -> list[AdapterRef]:
    return [
        AdapterRef(f"home@{seed}", str(make_adapter(70 + seed, router_init_std=1.0, **shape)))
        for seed, shape in enumerate(SHAPES)
    ]


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Iterator[ContinuousEngine]:
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    engine = ContinuousEngine(base, LIMITS)
    yield engine
    engine.close()


Told = tuple[list[int], RequestRouting | None]


async def ask(
    engine: ContinuousEngine,
    prompt: tuple[int, ...],
    adapter: AdapterRef | None,
    tokens: int = 12,
    **fields: Any,
) -> Told:
    sampling = Sampling(max_tokens=tokens, temperature=0.0, **fields)
    pieces = [piece async for piece in engine.generate(prompt, adapter, sampling)]
    assert all(piece.routing is None for piece in pieces[:-1])
    return [token for piece in pieces for token in piece.tokens], pieces[-1].routing


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def recorded(folder: Path, adapter: AdapterRef, tokens: list[int]) -> list[LayerRecord]:
    """What the layers decide in one pass over the tokens, with the adapter alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    attached = load_into(model, adapter.folder)
    with attached.record(rank_space=False) as records, torch.no_grad():
        model(torch.tensor([tokens]))
    return records


def check(layer: LayerRouting, record: LayerRecord) -> None:
    """One place's summary against the recorded decisions."""
    routing = record.routing
    experts = routing.logits_TE.shape[1]
    real = (routing.expert_TK < experts).flatten()
    chosen, gates = routing.expert_TK.flatten()[real], routing.gate_TK.flatten()[real]
    probs = routing.probs_TE
    top = probs.topk(2).values
    assert layer.layer == record.layer
    assert list(layer.load) == torch.bincount(chosen, minlength=experts).tolist()
    weight = torch.zeros(experts).index_add_(0, chosen, gates)
    assert layer.weight == pytest.approx(weight.tolist(), abs=1e-3)
    entropy = float(torch.special.entr(probs).sum()) / math.log(experts)
    assert layer.entropy == pytest.approx(entropy, abs=1e-3)
    assert layer.margin == pytest.approx(float((top[:, 0] - top[:, 1]).sum()), abs=1e-3)


def test_summaries_of_a_mixed_batch_are_those_of_each_request_alone(
    engine: ContinuousEngine, tiny_model_dir: Path, adapters: list[AdapterRef]
) -> None:
    """Prompts longer than a batch are split; E, K and strategies differ, and the base is there."""
    choices = [None, *adapters, *adapters[:3]]
    prompts = [tuple(range(9 + n, 9 + n + 7 * n)) for n in range(1, len(choices) + 1)]

    async def together() -> list[Told]:
        asked = zip(prompts, choices, strict=True)
        return await asyncio.gather(*(ask(engine, p, a, 8 + len(p) % 5) for p, a in asked))

    for prompt, adapter, (answer, told) in zip(prompts, choices, run(together()), strict=True):
        passed = [*prompt, *answer[:-1]]
        if adapter is None or adapter is adapters[6]:  # no router, no routing
            assert told is None
            continue
        assert told is not None
        assert told.tokens == len(passed)
        records = recorded(tiny_model_dir, adapter, passed)
        assert len(told.layers) == len(records) > 1
        for layer, record in zip(told.layers, records, strict=True):
            check(layer, record)


@pytest.mark.parametrize("number", range(6))
def test_every_token_in_order_where_a_request_asks_for_it(
    engine: ContinuousEngine, tiny_model_dir: Path, adapters: list[AdapterRef], number: int
) -> None:
    prompt = tuple(range(20, 90))

    async def together() -> list[Told]:
        company = [ask(engine, prompt[:9], adapter) for adapter in (None, adapters[0])]
        mine = ask(engine, prompt, adapters[number], by_token=True)
        return (await asyncio.gather(mine, *company))[0]

    answer, told = run(together())
    assert told is not None
    records = recorded(tiny_model_dir, adapters[number], [*prompt, *answer[:-1]])
    assert len(told.by_token) == told.tokens == len(prompt) + len(answer) - 1
    for at, layers in enumerate(told.by_token):
        for token, record in zip(layers, records, strict=True):
            experts = record.routing.expert_TK[at].tolist()
            kept = [
                k for k, expert in enumerate(experts) if expert < len(record.routing.logits_TE[0])
            ]
            assert token.experts == tuple(experts[k] for k in kept)
            gates = record.routing.gate_TK[at][kept].tolist()
            assert token.gates == pytest.approx(gates, abs=1e-4)


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_an_answer_that_a_stop_string_ends_tells_its_routing(
    engine: ContinuousEngine, tiny_model_dir: Path, adapters: list[AdapterRef], pause: float
) -> None:
    """Also where the engine is far ahead of who reads, as on a busy machine."""
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    text = TextEngine(engine, base.tokenizer)

    async def stopped(stop: tuple[str, ...]) -> list[Any]:
        request = TextRequest(
            "hello there", adapters[0], seed=3, max_tokens=24, stop=stop, routing="tokens"
        )
        chunks = []
        async for chunk in text.generate(request):
            chunks.append(chunk)
            time.sleep(pause)  # the engine has a thread of its own
        return chunks

    whole = "".join(chunk.text for chunk in run(stopped(())))
    stop = next(letter for letter in whole[4:12] if letter not in whole[:4] and letter != "�")
    chunks = run(stopped((stop,)))
    assert chunks[-1].finish == "stop"
    assert chunks[-1].completion_tokens < 24
    routing = chunks[-1].routing
    assert routing is not None
    read = chunks[-1].prompt_tokens + chunks[-1].completion_tokens
    assert read - 1 <= routing.tokens < chunks[-1].prompt_tokens + 24
    assert {sum(layer.load) for layer in routing.layers} == {2 * routing.tokens}
    assert len(routing.by_token) == min(routing.tokens, read), "no token that nobody was told"
    assert len(routing.texts) == len(routing.by_token)


def test_tokens_that_pass_again_after_a_crash_count_once(
    tiny_model_dir: Path, adapters: list[AdapterRef]
) -> None:
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    passes = iter(range(1000))

    def bomb(*_: Any) -> None:
        if next(passes) == 7:
            raise RuntimeError("boom")

    base.model.get_input_embeddings().register_forward_pre_hook(bomb)
    engine = ContinuousEngine(base, LIMITS)
    try:
        answer, told = run(ask(engine, tuple(range(30, 60)), adapters[0], by_token=True))
    finally:
        engine.close()
    assert next(passes) > 8
    assert told is not None
    assert told.tokens == len(told.by_token) == 30 + len(answer) - 1
