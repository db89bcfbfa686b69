"""Each optimizer takes its class's own steps, at each parameter's rate, and goes on exactly."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch

from workers.config.base import InputError
from workers.config.optimizers import OPTIMIZERS
from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.batches import Batch, collate
from workers.injection.inject import inject
from workers.models.base import Base
from workers.parallel.optimizer import make_optimizer, rate_groups
from workers.parallel.update import Replicated
from workers.train.inputs import Inputs
from workers.train.step import TrainStep

SpecMaker = Callable[..., TrainSpec]
BY_HAND: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
}
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)
TORCHS = [(name, 0.0) for name in BY_HAND] + [("sgd", 0.9), ("rmsprop", 0.9)]
PACKED = [
    pytest.param(name, 0.0, marks=needs_bitsandbytes)
    for name in OPTIMIZERS
    if name not in BY_HAND and not OPTIMIZERS[name].needs_gpu
]


class Trained:
    """An adapter and its step; in float64, but for bitsandbytes' optimizers."""

    def __init__(self, spec: TrainSpec) -> None:
        self.inputs = Inputs.load(spec)
        self.dtype = torch.float64 if spec.optimizer.name in BY_HAND else torch.float32
        model = self.inputs.base.model.to(self.dtype).train()
        self.adapter = inject(model, spec.adapter, seed=1)
        for parameter in self.adapter.parameters():
            parameter.data = parameter.data.to(self.dtype)
        self.update = Replicated(self.adapter, spec.optimizer)
        self.step = TrainStep(spec, self.inputs.base, self.adapter, self.update)

    def take(self, steps: int) -> dict[str, torch.Tensor]:
        """The parameters after so many more."""
        for _ in range(steps):
            self.step([self.batch])
        return {name: one.clone() for name, one in self.adapter.state_dict().items()}

    @property
    def base(self) -> Base:
        """The model."""
        return self.inputs.base

    @property
    def batch(self) -> Batch:
        """The rows of every step."""
        return collate(self.inputs.train[:8], self.inputs.pad_token_id)


@pytest.mark.parametrize(("name", "momentum"), TORCHS)
def test_it_takes_its_classs_own_steps(make_spec: SpecMaker, name: str, momentum: float) -> None:
    spec = make_spec(
        optimizer__name=name,
        optimizer__momentum=momentum,
        optimizer__loraplus_lr_ratio=4,
        optimizer__router_lr_ratio=0.5,
        optimizer__weight_decay=0.1,
        optimizer__schedule="constant",
    )
    ours = Trained(spec).take(2)
    other = Trained(spec)
    other.update.optimizer = SilentOptimizer(other.update.optimizer)  # type: ignore[assignment]
    ratios = {"weight": 0.5, "lora_A": 1, "lora_B": 4}
    named = dict(other.adapter.named_parameters())
    groups = [
        {"params": [one], "lr": 5e-3 * ratios[name.rpartition(".")[2]]}
        for name, one in named.items()
    ]
    options = {"momentum": momentum} if momentum else {}
    by_hand = BY_HAND[name](groups, lr=5e-3, weight_decay=0.1, **options)
    for _ in range(2):
        by_hand.zero_grad()
        other.step([other.batch])
        by_hand.step()
    for path, parameter in named.items():
        assert torch.allclose(ours[path], parameter.detach(), rtol=0, atol=1e-12), path


class SilentOptimizer:
    """Has the groups of another, and does nothing."""

    def __init__(self, other: torch.optim.Optimizer) -> None:
        self.param_groups = other.param_groups

    def step(self) -> None:
        """Take none."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Leave the gradients."""


@pytest.mark.parametrize(("name", "momentum"), [*TORCHS, *PACKED])
def test_it_goes_on_exactly(make_spec: SpecMaker, name: str, momentum: float) -> None:
    spec = make_spec(optimizer__name=name, optimizer__momentum=momentum, adapter__rank=16)
    run = Trained(spec)
    before = run.take(2)
    state, schedule = run.update.whole_state(), run.step.schedule_state()
    expected = run.take(2)
    again = Trained(spec)
    again.update.load_whole_state(state)
    again.step.load_schedule_state(schedule)
    for path, tensor in again.take(2).items():
        assert torch.equal(tensor, expected[path]), path
        assert not torch.equal(tensor, before[path]), path


def test_a_paged_one_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.parallel.optimizer.check_installed", lambda name: None)
    spec = OptimizerSpec(name="paged_adamw_8bit")
    groups = rate_groups({"x.lora_A": torch.nn.Parameter(torch.ones(1))}, spec)
    with pytest.raises(InputError, match="which needs a GPU; adamw_8bit does not"):
        make_optimizer(groups, spec)
