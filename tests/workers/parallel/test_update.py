"""A step's state, taken whole and taken over again."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch.nn import Parameter
from torch.optim.optimizer import ParamsT

from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.batches import collate
from workers.injection.inject import inject
from workers.parallel import update as module
from workers.parallel.expert_shards import ExpertShards
from workers.parallel.mesh import Mesh
from workers.parallel.update import Replicated
from workers.train.inputs import Inputs
from workers.train.step import TrainStep


def test_a_resumed_state_lies_where_its_parameters_lie(
    make_spec: Callable[..., TrainSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`meta` stands for a GPU: the fused optimizer there refuses a count of steps on the CPU."""
    spec = make_spec()
    inputs = Inputs.load(spec)
    adapter = inject(inputs.base.model.train(), spec.adapter, seed=1)
    update = Replicated(adapter, spec.optimizer)
    TrainStep(spec, inputs.base, adapter, update)([collate(inputs.train, inputs.pad_token_id)])
    state = update.whole_state()
    assert {one.device.type for part in state.values() for one in part.values()} == {"cpu"}
    again = Replicated(adapter, spec.optimizer)
    again.load_whole_state(state)
    for name, part in again.whole_state().items():
        for parameter, tensor in part.items():
            assert torch.equal(tensor, state[name][parameter]), (name, parameter)

    def eager(parameters: ParamsT, spec: OptimizerSpec) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, lr=spec.lr)  # the fused one knows no meta

    monkeypatch.setattr(module, "adamw", eager)
    away = {name: Parameter(one.to("meta")) for name, one in adapter.named_parameters()}
    elsewhere = Replicated(
        SimpleNamespace(named_parameters=away.items),  # type: ignore[arg-type]
        spec.optimizer,
        ExpertShards(adapter, Mesh()),
    )
    elsewhere.load_whole_state(state)
    kept = elsewhere.optimizer.state
    assert kept, "nothing was taken over"
    for parameter, tensors in kept.items():
        assert set(tensors) == {"step", "exp_avg", "exp_avg_sq"}
        assert parameter.device.type == "meta"
        assert {one.device for one in tensors.values()} == {parameter.device}
