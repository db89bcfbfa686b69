"""A step's state, taken whole and taken over again."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch.nn import Parameter

from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.batches import collate
from workers.injection.inject import inject
from workers.parallel import update as module
from workers.parallel.expert_shards import ExpertShards
from workers.parallel.mesh import Mesh
from workers.parallel.optimizer import Groups
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

    def eager(groups: Groups, spec: OptimizerSpec) -> torch.optim.AdamW:
        return torch.optim.AdamW(groups, lr=spec.lr)  # the fused one knows no meta

    monkeypatch.setattr(module, "make_optimizer", eager)
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


def stepped(spec: TrainSpec, steps: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """An adapter in float64 after so many steps, and their rates."""
    inputs = Inputs.load(spec)
    adapter = inject(inputs.base.model.double().train(), spec.adapter, seed=1)
    for parameter in adapter.parameters():
        parameter.data = parameter.data.double()
    step = TrainStep(spec, inputs.base, adapter, Replicated(adapter, spec.optimizer))
    batch = collate(inputs.train[:8], inputs.pad_token_id)
    rates = [step([batch]).lr for _ in range(steps)]
    state = adapter.state_dict()
    adapter.remove()
    inputs.base.model.float()
    return state, rates


@pytest.mark.parametrize("shape", [{}, {"experts": "linear", "use_dora": True}])
def test_each_kind_of_parameter_learns_at_its_own_rate(
    make_spec: Callable[..., TrainSpec], shape: dict[str, object]
) -> None:
    """As torch's AdamW over one group a parameter does it, with the schedule's rate for each."""
    spec = make_spec(
        **{f"adapter__{name}": value for name, value in shape.items()},
        optimizer__loraplus_lr_ratio=16,
        optimizer__router_lr_ratio=0.25,
        optimizer__schedule="linear",
        optimizer__max_grad_norm=None,
        optimizer__weight_decay=0.1,
    )
    ours, rates = stepped(spec, 3)
    assert rates == pytest.approx([5e-3, 3.75e-3, 2.5e-3], rel=1e-15)

    inputs = Inputs.load(spec)
    adapter = inject(inputs.base.model.double().train(), spec.adapter, seed=1)
    named = dict(adapter.named_parameters())
    ratios = {"weight": 0.25, "lora_A": 1, "lora_B": 16, "lora_magnitude": 16}
    groups = []
    for name, parameter in named.items():
        parameter.data = parameter.data.double()
        groups.append({"params": [parameter], "ratio": ratios[name.rpartition(".")[2]]})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    still = TrainStep(spec, inputs.base, adapter, Kept(adapter, spec.optimizer))
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        still([collate(inputs.train[:8], inputs.pad_token_id)])
        optimizer.step()
        optimizer.zero_grad()
    kinds = {name.rpartition(".")[2] for name in named}
    assert kinds == {"weight", "lora_A", "lora_B"} | ({"lora_magnitude"} if shape else set())
    for name, parameter in named.items():
        assert torch.allclose(ours[name], parameter.detach(), rtol=0, atol=1e-12), name


class Kept(Replicated):
    """Leaves the gradients for another optimizer."""

    def apply(self) -> None:
        """Take no step."""


def test_a_router_at_rate_0_stays_as_it_was_drawn(make_spec: Callable[..., TrainSpec]) -> None:
    spec = make_spec(optimizer__router_lr_ratio=0, optimizer__weight_decay=0.1)
    trained, _ = stepped(spec, 2)
    drawn, _ = stepped(spec, 0)
    moved = {name for name, tensor in trained.items() if not torch.equal(tensor, drawn[name])}
    assert moved == {name for name in drawn if not name.endswith("router.weight")}


def test_a_checkpoint_of_an_earlier_moetune_goes_on(make_spec: Callable[..., TrainSpec]) -> None:
    """It held torch's own schedule, with one rate."""
    spec = make_spec(optimizer__loraplus_lr_ratio=4, optimizer__router_lr_ratio=0.5)
    adapter = inject(Inputs.load(spec).base.model, spec.adapter, seed=1)
    update = Replicated(adapter, spec.optimizer)
    step = TrainStep(spec, Inputs.load(spec).base, adapter, update)
    step.load_schedule_state(
        {
            "base_lrs": [5e-3],
            "last_epoch": 2,
            "_step_count": 3,
            "_is_initial": False,
            "_get_lr_called_within_step": False,
            "_last_lr": [2.5e-3],
            "lr_lambdas": [{}],
        }
    )
    assert sorted(group["lr"] for group in update.optimizer.param_groups) == pytest.approx(
        [1.25e-3, 2.5e-3, 1e-2]
    )
    assert step.schedule_state() == {"last_epoch": 2}
    adapter.remove()
