"""How an adapter's gradients become a step, for one layout of its parameters over the workers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from workers.config.train import OptimizerSpec
from workers.injection.adapter import Adapter
from workers.parallel.expert_shards import ExpertShards
from workers.parallel.mesh import Mesh
from workers.parallel.optimizer import make_optimizer, rate_groups
from workers.parallel.world import World

State = Mapping[str, Mapping[str, Tensor]]
"""Whole tensors on the CPU, whatever the layout: `adapter`, what the optimizer keeps (AdamW's
`exp_avg` and `exp_avg_sq`) and its `step`, each by canonical name, experts by global id."""


class Update(Protocol):
    """A layout's part of a training step. Losses are divided by the counts of the whole step, so
    gradients are summed over the workers, never averaged."""

    world: World
    """All workers: each has rows of its own."""
    independent: bool
    """Whether no worker waits for another in the midst of a pass, but for sums of the losses: what
    one of them could not do, all can then do again."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Its groups' `lr` is what the schedule sets."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this worker's part of one micro-batch's loss."""

    def reduce(self) -> None:
        """Sum the gradients over the workers, after the last micro-batch."""

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients down to `max_norm`; their norm before, every parameter counted once,
        the same bits on every worker."""

    def apply(self) -> None:
        """Take the step, and drop the gradients."""

    def drop(self) -> None:
        """Drop the gradients."""

    def whole_adapter(self) -> dict[str, Tensor]:
        """The adapter's parameters alone, as in `whole_state`."""

    def whole_state(self) -> State:
        """Everything that a later run needs, in any layout. A collective; complete on the first
        worker at least."""

    def load_whole_state(self, state: State) -> None:
        """Take over what `whole_state` gave, in any layout."""


class NamedUpdate(ABC):
    """The part of an `Update` that follows from where each named parameter lies."""

    def __init__(self, named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self._named, self.optimizer = dict(named), optimizer

    def backward(self, loss: Tensor) -> None:
        """See Update."""
        torch.autograd.backward(loss)

    def apply(self) -> None:
        """See Update."""
        self.optimizer.step()
        self.drop()

    def drop(self) -> None:
        """See Update."""
        self.optimizer.zero_grad(set_to_none=True)

    def whole_adapter(self) -> dict[str, Tensor]:
        """See Update."""
        return {name: self._whole(name, one.detach()) for name, one in self._named.items()}

    def whole_state(self) -> State:
        """See Update."""
        state = {"adapter": self.whole_adapter()}
        for name, parameter in self._named.items():
            for key, value in self.optimizer.state[parameter].items():
                count = torch.as_tensor(value, device="cpu").clone() if key == "step" else None
                whole = self._whole(name, value) if count is None else count
                state.setdefault(key, {})[name] = whole
        return state

    def load_whole_state(self, state: State) -> None:
        """See Update: every worker must have read it."""
        for name, parameter in self._named.items():
            with torch.no_grad():
                parameter.copy_(self._part(name, state["adapter"][name]))
            kept = {key: part[name] for key, part in state.items() if name in part}
            del kept["adapter"]
            # The fused optimizer wants its count of steps beside the parameter, too.
            count = kept.pop("step", None)
            step = {} if count is None else {"step": _count(count, parameter)}
            moments = {key: self._part(name, value) for key, value in kept.items()}
            self.optimizer.state[parameter] = step | moments

    @abstractmethod
    def _whole(self, name: str, tensor: Tensor) -> Tensor:
        """The whole of a tensor of the parameter's shape, on the CPU; a collective."""

    @abstractmethod
    def _part(self, name: str, whole: Tensor) -> Tensor:
        """This worker's part of it, where the parameter lies."""


class Replicated(NamedUpdate):
    """An `Update` with a copy of everything on each worker, but for experts in shards.

    Why not DistributedDataParallel: it reduces in every backward pass unless each but the last
    micro-batch is wrapped in `no_sync`, divides by the world where we divide by the step's target
    tokens, and wants to know of parameters without gradient. An adapter has a few million
    gradients: one message after the last micro-batch is the least that can be sent, there is next
    to no backward pass left to hide it behind, and nothing is divided twice.
    """

    def __init__(
        self, adapter: Adapter, spec: OptimizerSpec, shards: ExpertShards | None = None
    ) -> None:
        """Without `shards` this worker is alone."""
        self._shards = shards or ExpertShards(adapter, Mesh())
        named = dict(adapter.named_parameters())
        shards, mesh = self._shards, self._shards.mesh
        self.world, self.independent = mesh.world, mesh.ep.size == 1
        own = [one for name, one in named.items() if name in shards.parameters]
        rest = [one for name, one in named.items() if name not in shards.parameters]
        self._parts: list[tuple[list[nn.Parameter], World, World]] = [
            (rest, mesh.world, World()),
            (own, mesh.dp, mesh.ep),
        ]
        """Parameters, the workers that have the same ones, and those that have the others."""
        for parameters, same, _ in self._parts:
            same.broadcast(parameters)
        super().__init__(named, make_optimizer(rate_groups(named, spec), spec))

    def reduce(self) -> None:
        """See Update: a worker's experts have had the gradients of all tokens of their copy."""
        for parameters, same, _ in self._parts:
            same.add_gradients(parameters)

    def clip(self, max_norm: float) -> Tensor:
        """See Update."""
        squares = [
            others.all_reduce(_norm(parameters).square())
            for parameters, _, others in self._parts
            if parameters
        ]
        norm = torch.stack(squares).sum().sqrt()
        torch.nn.utils.clip_grads_with_norm_(self._named.values(), max_norm, norm)
        return norm

    def _whole(self, name: str, tensor: Tensor) -> Tensor:
        whole = self._shards.whole(tensor) if name in self._shards.parameters else tensor.clone()
        return whole.cpu()

    def _part(self, name: str, whole: Tensor) -> Tensor:
        part = self._shards.own(whole) if name in self._shards.parameters else whole
        like = self._named[name]
        kind = like.dtype if part.is_floating_point() else part.dtype  # bitsandbytes' are bytes
        return part.to(like.device, kind, copy=True)


def _count(step: Tensor, parameter: nn.Parameter) -> Tensor | int:
    """A count of steps as its optimizer has it: bitsandbytes' is a plain number."""
    whole = step.is_floating_point()
    return step.to(parameter.device, copy=True) if whole else int(step)


def _norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    return torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
