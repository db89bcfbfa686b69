"""Decoder layers that are compiled, against the same as they are written."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import fx
from torch._inductor.runtime import cache_dir_utils

from tests.tiny import ON_EXPERTS, write_mixture
from tests.workers.train.compiled_cases import LOSSES, STEPS, assert_alike, trained
from workers.config.train import TrainSpec
from workers.data.store.cache import COMPILED_FOLDER, cache_folder
from workers.data.store.token_store import TokenStore
from workers.run.record import RunPlan
from workers.train import measure
from workers.train.compiled import CACHE_VARIABLE, CompiledLayers
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun

SpecMaker = Callable[..., TrainSpec]


class Traced:
    """A backend that runs a graph as torch has traced it."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: fx.GraphModule, _inputs: Sequence[object]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def broken(_graph: fx.GraphModule, _inputs: Sequence[object]) -> Callable[..., Any]:
    """A backend as it is without a compiler."""
    raise RuntimeError("no C++ compiler\nis here")


def compiled(run: TrainingRun, backend: Any) -> CompiledLayers:
    rank_space = bool(run.spec.loss.comparing())
    run.compiled = CompiledLayers(
        run.inputs.base, run.adapter, rank_space=rank_space, backend=backend
    )
    return run.compiled


def test_layers_and_lengths_share_graphs_and_only_training_uses_them(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    changes = {"evaluation__generate": True, "evaluation__batch_size": 4, **LOSSES}
    spec = make_spec(optimizer__micro_batch_size=2, **changes)
    losses, weights = trained(TrainingRun(spec, RunPlan(tmp_path / "plain", "study")))

    run, traced = TrainingRun(spec, RunPlan(tmp_path / "run", "study")), Traced()
    before = torch.get_rng_state()
    assert compiled(run, traced).words.startswith("decoder layers, in ")
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(parameter.grad is not None for parameter in run.adapter.parameters())
    first = traced.graphs
    assert 0 < first <= 2, "one where gradients come in, one where they do not"
    found, now = trained(run)
    assert traced.graphs == first
    assert found == losses
    for name, tensor in weights.items():
        assert torch.equal(now[name], tensor), name

    run.close()
    model = run.inputs.base.model.train()
    model(torch.arange(40).view(2, 20))
    assert traced.graphs == first, "the next run finds the base as it was"


def test_where_nothing_compiles_a_warning_says_so_and_the_run_goes_on(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    losses, _ = trained(TrainingRun(make_spec(), RunPlan(tmp_path / "plain", "study")))
    run = TrainingRun(make_spec(), RunPlan(tmp_path / "run", "study"))
    with pytest.warns(UserWarning, match="does not work here, and the run goes on without: .*no C"):
        layers = compiled(run, broken)
    assert "\n" not in layers.words
    assert trained(run)[0] == losses


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_torch_keeps_what_it_compiles_in_our_cache_or_where_it_was_told(
    make_spec: SpecMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: str | None,
) -> None:
    """Torch's own choice, which it makes where its compiler is imported, is a folder in /tmp."""
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    torch_chose = cache_dir_utils.cache_dir()
    assert os.environ[CACHE_VARIABLE] == torch_chose
    wanted = str(tmp_path / chosen if chosen else cache_folder(COMPILED_FOLDER))
    if chosen:
        monkeypatch.setenv(CACHE_VARIABLE, wanted)
    with pytest.warns(UserWarning, match="does not work here"):
        compiled(TrainingRun(make_spec(), RunPlan(tmp_path / "run", "study")), broken)
    assert cache_dir_utils.cache_dir() == wanted != torch_chose


@pytest.mark.parametrize("kind", ["linear", "stacked"])
def test_traced_layers_give_what_eager_ones_give(
    make_spec: SpecMaker, tiny_model_dir: Path, tmp_path: Path, kind: str
) -> None:
    """Taken apart for the backward pass as for torch's compiler, which takes half a minute for each
    kind, and is asked for block experts in tests/distributed/test_compiled.py."""
    some = {"adapter__target_modules": ("q_proj", "down_proj")}
    changes: dict[str, object] = {"adapter__experts": kind, **some, **LOSSES}
    if kind == "stacked":
        base = write_mixture(tiny_model_dir, tmp_path / "base", "mixtral")
        own = {f"adapter__{name}": value for name, value in ON_EXPERTS.items()}
        changes = {"model__path": str(base), **own, "adapter__target_modules": ()}
    spec = make_spec(**STEPS, **changes)
    losses_and_weights = trained(TrainingRun(spec, RunPlan(tmp_path / "plain", "study")))
    run = TrainingRun(spec, RunPlan(tmp_path / "run", "study"))
    fresh = {name: one.clone() for name, one in run.adapter.state_dict().items()}
    assert compiled(run, "aot_eager").words.startswith("decoder layers, in ")
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_alike(trained(run), losses_and_weights, fresh)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parallel__strategy": "fsdp2"}, "parallel.strategy is fsdp2 and ep_size is 1"),
        ({"parallel__ep_size": 2}, "parallel.strategy is ddp and ep_size is 2"),
        ({"data__packing": True}, "data.packing is true, but so is model.compile"),
        ({"model__activation_checkpointing": True}, "activation_checkpointing is true, but so is"),
        ({"model__quantization": "torchao_int8"}, "quantization is torchao_int8, but compile"),
        ({"model__attention": "flex_attention"}, "attention is flex_attention, but compile"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_not_shown_to_give_the_same_is_refused(
    make_spec: SpecMaker, changes: dict[str, object], said: str
) -> None:
    with pytest.raises((ValidationError, ValueError), match=said):
        make_spec(parallel__workers=2, model__compile=True, **changes)


def test_steps_that_are_measured_beforehand_are_compiled_too(
    make_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainSpec] = []
    monkeypatch.setattr(measure, "compiled_layers", lambda spec, *_: asked.append(spec))
    spec = make_spec(model__compile=True)
    store = TokenStore(Inputs.load(spec).encoder, lambda *_: None)
    assert measure.measured_steps(spec, store.training()).usual.seconds > 0
    assert asked == [spec]


def test_a_run_may_go_on_compiled(make_spec: SpecMaker) -> None:
    assert make_spec().same_run(make_spec(model__compile=True))
