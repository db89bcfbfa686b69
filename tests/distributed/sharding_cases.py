"""Layouts of one training run over several workers, and the rows that they train on."""

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.tiny import ON_EXPERTS
from workers.config.adapter import AdapterSpec
from workers.config.data import DataSpec
from workers.config.model import ModelSpec
from workers.config.parallel import ParallelSpec
from workers.config.train import LossSpec, OptimizerSpec, TrainSpec
from workers.data.batches import Batch, collate
from workers.data.example import Example
from workers.data.packing import pack
from workers.injection.adapter import Adapter
from workers.injection.inject import inject
from workers.models.base import Base, load_base
from workers.models.sharded_loading import reading
from workers.parallel.cost import ExchangeChoice, Passes
from workers.parallel.deepspeed import DeepSpeedUpdate
from workers.parallel.expert_shards import ExpertShards
from workers.parallel.mesh import Mesh
from workers.parallel.strategy import update_for
from workers.parallel.update import State, Update
from workers.train.step import StepResult, TrainStep

STEPS = 3
ROWS = 8
"""Of one step, over all workers."""
VOCABULARY = 256

ADAPTERS: Mapping[str, Mapping[str, object]] = {
    "block": {"num_experts": 3},  # Three do not divide among two workers.
    "even block": {"num_experts": 4},
    "linear dora": {"num_experts": 4, "experts": "linear", "use_dora": True},
    "stacked": ON_EXPERTS,
    "only stacked": {**ON_EXPERTS, "target_modules": ()},
}


@dataclass(frozen=True)
class Layout:
    """A strategy, and what is asked of it."""

    strategy: str = "ddp"
    zero_stage: int = 2
    offload_optimizer: bool = False
    ep_size: int = 1
    exchange: str = "weights"
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    """Activations are computed again in the backward pass."""
    packed: bool = False
    """Rows follow one another; what it is compared with is padded."""
    optimizer: str = "adamw"
    momentum: float = 0.0
    lr: float = 1e-4

    def spec(self, folder: Path, adapter: str, workers: int) -> TrainSpec:
        """The whole specification."""
        return TrainSpec(
            model=ModelSpec(path=str(folder), activation_checkpointing=self.checkpointing),
            adapter=AdapterSpec.model_validate(
                {"top_k": 2, "rank": 3, "dropout": 0.0, **ADAPTERS[adapter]}
            ),
            loss=LossSpec(load_balance_weight=0.1, z_loss_weight=0.01),
            data=DataSpec(train="-", validation="-"),
            optimizer=OptimizerSpec(
                name=self.optimizer,
                momentum=self.momentum,
                # Adam makes a whole step of the rounding of a gradient near zero.
                lr=self.lr,
                loraplus_lr_ratio=3.0,
                router_lr_ratio=0.5,
                weight_decay=0.01,
                schedule="constant",
                max_grad_norm=0.5,
                batch_size=ROWS,
            ),
            parallel=ParallelSpec.model_validate(
                {
                    "workers": workers,
                    "strategy": self.strategy,
                    "zero_stage": self.zero_stage,
                    "offload_optimizer": self.offload_optimizer,
                    "ep_size": self.ep_size,
                }
            ),
        )


LAYOUTS = [
    Layout("fsdp2"),
    Layout("fsdp2", dtype=torch.float64),
    Layout("fsdp2", checkpointing=True),
    Layout("fsdp2", dtype=torch.float64, packed=True),
    Layout(packed=True),
    Layout(dtype=torch.float64, packed=True),
    Layout("deepspeed", 3, packed=True),
    Layout("deepspeed", 1),
    Layout("deepspeed", 2),
    Layout("deepspeed", 3),
    Layout("deepspeed", 3, checkpointing=True),
    Layout("deepspeed", 1, offload_optimizer=True),
    Layout("deepspeed", 2, offload_optimizer=True),
    Layout("deepspeed", 3, offload_optimizer=True),
]


# RMSprop's first step is ten times its rate, and so is what it makes of a gradient's rounding.
OTHER_OPTIMIZERS = [
    Layout("fsdp2", dtype=torch.float64, optimizer="adam"),
    Layout("fsdp2", dtype=torch.float64, optimizer="adagrad"),
    Layout("fsdp2", dtype=torch.float64, optimizer="rmsprop", momentum=0.9, ep_size=2),
    Layout("fsdp2", dtype=torch.float64, optimizer="sgd"),
    Layout("deepspeed", 1, optimizer="sgd", momentum=0.9),
    Layout("deepspeed", 2, optimizer="rmsprop", lr=1e-5),
    Layout("deepspeed", 3, optimizer="sgd"),
    Layout("deepspeed", 3, optimizer="rmsprop", lr=1e-5),
]
PLAIN = [Layout("fsdp2"), Layout("deepspeed", 2), Layout("deepspeed", 3)]
"""One of each kind."""
WITH_EXPERT_PARALLELISM = [
    Layout("fsdp2", ep_size=2, exchange=exchange, dtype=dtype)
    for exchange in ("tokens", "weights")
    for dtype in (torch.float32, torch.float64)
] + [
    Layout("fsdp2", ep_size=2, exchange=exchange, checkpointing=True, packed=packed)
    for exchange in ("tokens", "weights")
    for packed in (False, True)
]
RELAY = [
    Layout(),
    Layout("fsdp2"),
    Layout("deepspeed", 3),
    Layout("deepspeed", 1),
    Layout("deepspeed", 2, offload_optimizer=True),
    Layout("deepspeed", 3, offload_optimizer=True),
    Layout("fsdp2", ep_size=2),
    Layout(),
]
"""Each goes on from the former one's state."""


def rows(step: int) -> list[Example]:
    """The rows of a step: of many lengths, none like the others; in odd steps of many weights."""
    drawn = Random(step)
    lengths = [(drawn.randrange(1, 9), drawn.randrange(1, 6)) for _ in range(ROWS)]
    made = [
        Example.of(*(tuple(drawn.randrange(4, VOCABULARY) for _ in range(size)) for size in sizes))
        for sizes in lengths
    ]
    return [_weighted(one, drawn.random()) for one in made] if step % 2 else made


def _weighted(example: Example, weight: float) -> Example:
    return replace(example, spans=tuple(replace(span, weight=weight) for span in example.spans))


def micro_batches(
    step: int, micro: int, rank: int, workers: int, *, packed: bool = False
) -> list[Batch]:
    """This worker's part of each of the step's micro-batches."""
    parts, lay = (rows(step)[first::micro] for first in range(micro)), pack if packed else collate
    return [lay(part[rank::workers], 3) for part in parts]


@dataclass
class Run:
    """One adapter in training in one layout."""

    base: Base
    adapter: Adapter
    update: Update
    step: TrainStep
    packed: bool
    results: list[StepResult] = field(default_factory=list)

    @classmethod
    def of(cls, layout: Layout, folder: Path, adapter_name: str, mesh: Mesh | None = None) -> "Run":
        """A fresh one on this worker."""
        gc.freeze()  # DeepSpeed collects whenever it starts: a quarter of a second, if of all
        mesh = mesh or Mesh()
        spec = layout.spec(folder, adapter_name, mesh.world.size)
        if layout.ep_size > 1:
            mesh = Mesh.of(spec.parallel)
        base = load(spec, layout.dtype)
        base.model.train()
        adapter = inject(base.model, spec.adapter, seed=1)
        torch.manual_seed(0)
        for name, parameter in adapter.named_parameters():
            parameter.data = parameter.data.to(layout.dtype)
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        shards = ExpertShards(adapter, mesh, ExchangeChoice(layout.exchange), Passes.of(spec))
        if layout.zero_stage == 3 and layout.strategy == "deepspeed":
            # The tiny model's tensors would all stay whole.
            update: Update = DeepSpeedUpdate(base.model, adapter, spec, mesh.world, keep_whole=0)
        else:
            update = update_for(spec, base.model, adapter, shards)
        return cls(base, adapter, update, TrainStep(spec, base, adapter, update), layout.packed)

    def train(self, steps: Iterable[int], micro: int) -> "Run":
        """Take these steps."""
        world = self.update.world
        for step in steps:
            part = micro_batches(step, micro, world.rank, world.size, packed=self.packed)
            self.results.append(self.step(part))
        return self

    def trace(self) -> "Trace":
        """What they gave; a collective."""
        return Trace(
            [result.losses["loss"] for result in self.results],
            [result.grad_norm for result in self.results],
            self.update.whole_state(),
        )


@dataclass
class Trace:
    """Losses, norms before clipping, and where parameters and optimizer ended."""

    losses: Sequence[float]
    norms: Sequence[float]
    state: State

    def compare(self, other: "Trace", tolerance: float) -> None:
        """An AssertionError names the first difference that is too large."""
        for name in ("losses", "norms"):
            ours, theirs = torch.tensor(getattr(self, name)), torch.tensor(getattr(other, name))
            _check(name, ours, theirs, tolerance)
        assert self.state.keys() == other.state.keys()
        for kind, part in other.state.items():
            assert self.state[kind].keys() == part.keys()
            for name, tensor in part.items():
                _check(f"{kind} {name}", self.state[kind][name], tensor, tolerance)


def load(spec: TrainSpec, dtype: torch.dtype) -> Base:
    """The base as training loads it, in float64 too, which no specification asks for."""
    if dtype is torch.float32:
        return load_base(spec.model, spec.parallel)
    device = torch.device("cpu")
    with reading(spec.model, spec.parallel, device) as options:
        model = AutoModelForCausalLM.from_pretrained(spec.model.path, dtype=dtype, **options)
    model.requires_grad_(False)
    return Base(model, None, device)


def _check(name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    error = float((ours - theirs).abs().max() / max(0.1, float(theirs.abs().max())))
    assert error <= tolerance, f"{name}: {error}"
