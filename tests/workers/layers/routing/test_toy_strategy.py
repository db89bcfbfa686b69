"""A new routing strategy is one class and one entry: a toy one is registered, trained, saved,
loaded, served, searched over and taken away again, and nothing else knows it."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from transformers import AutoModelForCausalLM

from search_spaces.space import SearchSpace
from tests.workers.layers.routing.toy_strategy import ENTRY, NAME, NearBest
from workers.adapter import files
from workers.adapter.config import read_config
from workers.adapter.convert import export_folder, import_folder
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError, override, validated
from workers.config.json_schema import json_schema
from workers.config.model import ModelSpec
from workers.config.routing import ROUTERS
from workers.config.train import TrainSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import AdapterRef, Limits, Sampling
from workers.models.base import load_base
from workers.run.record import RunPlan
from workers.train.loop import TrainingRun

SpecMaker = Callable[..., TrainSpec]
SHAPE = {"adapter__routing": NAME, "adapter__top_k": 3, "adapter__top_p": 0.7}
PROMPTS = [tuple(range(7 + n, 20 + 2 * n)) for n in range(4)]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROUTERS, NAME, ENTRY)


@pytest.fixture(scope="module")
def run(make_spec: SpecMaker, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """One that has learnt, and saved its adapter. Only to be read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ROUTERS, NAME, ENTRY)
        spec = make_spec(
            **SHAPE,
            adapter__router_init_std=0.05,
            optimizer__steps=8,
            optimizer__lr=2e-2,
            evaluation__every=4,
            loss__contrastive_weight=0.01,
        )
        run = TrainingRun(spec, RunPlan(tmp_path_factory.mktemp("run"), "study", 1))
        before = {name: tensor.clone() for name, tensor in run.adapter.state_dict().items()}
        reports = []
        while not run.done:
            reports.append(run.advance())
        run.save_adapter(run.plan.folder / "adapter")
    assert reports[-1]["validation"]["loss"] < reports[0]["validation"]["loss"]
    after = run.adapter.state_dict()
    assert not any(torch.equal(tensor, after[name]) for name, tensor in before.items())
    return run


@pytest.fixture
def trained(run: TrainingRun, toy: None) -> TrainingRun:
    return run


@pytest.fixture
def folder(trained: TrainingRun) -> Path:
    return trained.plan.folder / "adapter"


def by_hand(logits_E: list[float], spec: AdapterSpec) -> set[int]:
    probs_E = torch.tensor(logits_E).softmax(-1).tolist()
    best = sorted(range(len(probs_E)), key=lambda expert: -probs_E[expert])[: spec.top_k]
    return {expert for expert in best if probs_E[expert] >= spec.top_p * max(probs_E)}


def test_it_is_loaded_as_it_was_trained(
    trained: TrainingRun, folder: Path, tiny_model_dir: Path
) -> None:
    saved = files.read(folder)
    assert (saved.spec.routing, saved.spec.top_k, saved.spec.top_p) == (NAME, 3, 0.7)
    assert read_config(folder)[0].routing_strategy == NAME
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    adapter = files.load_into(model, folder)
    assert {type(router) for router in adapter.routers.values()} == {NearBest}
    for name, tensor in trained.adapter.state_dict().items():
        assert torch.equal(adapter.state_dict()[name], tensor), name
    with torch.no_grad(), adapter.record() as records:
        model(torch.tensor([PROMPTS[3]]))
    counts = set()
    for record in records:
        logits_TE, expert_TK, _, _ = record.routing
        for logits_E, expert_K in zip(logits_TE.tolist(), expert_TK.tolist(), strict=True):
            taken = set(expert_K) - {4}
            assert taken == by_hand(logits_E, saved.spec)
            counts.add(len(taken))
    assert len(counts) > 1, "tokens have different numbers of experts"


def test_it_is_served_beside_others(
    folder: Path, tiny_model_dir: Path, make_adapter: Callable[..., Path]
) -> None:
    adapters = [AdapterRef("toy", str(folder)), AdapterRef("other", str(make_adapter(3))), None]
    asked = [(prompt, adapters[n % 3]) for n, prompt in enumerate(PROMPTS)]
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    engine = ContinuousEngine(base, Limits(max_batch_tokens=48, cache_tokens=640))

    async def one(prompt: tuple[int, ...], adapter: AdapterRef | None) -> tuple[list[int], Any]:
        sampling = Sampling(max_tokens=12, temperature=0.0)
        pieces = [piece async for piece in engine.generate(prompt, adapter, sampling)]
        return [token for piece in pieces for token in piece.tokens], pieces[-1].routing

    async def together() -> list[tuple[list[int], Any]]:
        return await asyncio.gather(*(one(*request) for request in asked))

    try:
        answers = asyncio.run(asyncio.wait_for(together(), 120))
    finally:
        engine.close()
    for (prompt, adapter), (tokens, routing) in zip(asked, answers, strict=True):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
        if adapter is not None:
            files.attach(model, adapter.folder)
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        assert tokens == ids[0, len(prompt) :].tolist(), adapter
        assert (routing is None) == (adapter is None)


def test_its_training_goes_on_with_the_same_options_only(
    folder: Path, make_spec: SpecMaker, tmp_path: Path
) -> None:
    onward, plan = partial(make_spec, start_from=str(folder)), RunPlan(tmp_path / "on", "study")
    TrainingRun(onward(**SHAPE), plan)
    for changes, message in (
        ({"adapter__top_p": 0.5}, r"adapter\.top_p 0\.5: it has 0\.7"),
        ({"adapter__top_k": 2}, r"adapter\.top_k 2: it has 3"),
        ({"adapter__routing": "top_p"}, rf"adapter\.routing top_p: it has {NAME}"),
    ):
        with pytest.raises(InputError, match=message):
            TrainingRun(onward(**{**SHAPE, **changes}), plan)


@pytest.mark.usefixtures("toy")
def test_a_space_asks_for_its_options(make_spec: SpecMaker) -> None:
    definition = {
        "adapter.num_experts": {"choice": [1, 2, 4]},
        "adapter.routing": {"choice": ["switch", NAME]},
        "adapter.top_k": {"int": [1, 4], "below": "adapter.num_experts"},
        "adapter.top_p": {"float": [0.5, 0.9]},
        "adapter.expert_capacity": {"choice": [8, 16]},
    }
    space = SearchSpace.resolve(definition, make_spec())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked = set()
    for _ in range(40):
        values = space(study.ask())
        adapter = override(make_spec(), values, "trial").adapter
        own = {path.removeprefix("adapter.") for path in values} - {"num_experts", "routing"}
        if adapter.is_routed and adapter.routing == NAME:
            assert own == {"top_k", "top_p"}
            assert adapter.top_k < adapter.layer_experts
        elif adapter.is_routed:
            assert own == {"expert_capacity"}
        asked.add((adapter.is_routed, adapter.routing))
    assert {(True, NAME), (True, "switch")} <= asked
    assert space.varied()[-1] != "adapter.top_k", "it was named"
    unnamed = {"adapter.num_experts": {"choice": [2, 4]}, "adapter.routing": NAME}
    assert SearchSpace.resolve(unnamed, make_spec()).varied() == [
        "adapter.num_experts",
        "adapter.top_k",
    ]


@pytest.mark.usefixtures("toy")
def test_its_options_are_checked_and_described() -> None:
    with pytest.raises(InputError, match="top_k is 5, but must be at most num_experts, which is 4"):
        validated(AdapterSpec, {"routing": NAME, "num_experts": 4, "top_k": 5}, "adapter")
    routing = json_schema(AdapterSpec)["properties"]["routing"]
    assert routing["enum"][-1] == NAME
    assert f"{NAME}: {ENTRY.summary}." in routing["description"]
    assert AdapterSpec(routing=NAME).fewest_slots == 1, "others may be too far from the best"


def test_what_mixlora_does_not_know_is_not_written_as_its_own(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"as mixlora: MoE-PEFT knows no routing {NAME}"):
        export_folder(folder, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
    again = import_folder(folder, tmp_path / "again")
    assert files.read(again).spec == files.read(folder).spec


def test_without_its_entry_it_is_refused(
    folder: Path, make_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(ROUTERS, NAME)
    others = "'top_k', 'top_p' or 'switch'"
    with pytest.raises(InputError, match=rf"adapter\.routing: Input should be {others}, not"):
        make_spec(**SHAPE)
    strategies = "'mixlora', 'mixlora-dynamic' or 'mixlora-switch'"
    with pytest.raises(InputError, match=f"routing_strategy: Input should be {strategies}, not"):
        files.read(folder)
    assert NAME not in json.dumps(json_schema(TrainSpec))
