"""The workers of one run: who am I, how many are we, and sums over all of us.

One process without torch.distributed is a world of one: everything here is then free.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workers.layers.ops.transfer import onto

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """One worker's place among the workers of a run, or of a group of them."""

    rank: int = 0
    """This worker, from 0."""
    size: int = 1
    """Workers in all."""
    group: dist.ProcessGroup | None = None
    """The group of these workers; None is the default group, of all."""

    @classmethod
    def current(cls) -> "World":
        """The default process group, or a world of one where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> "World":
        """The workers of a group that this one belongs to."""
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def is_first(self) -> bool:
        """Whether this worker writes files and reports."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that fall to this worker: every `size`-th."""
        return items[self.rank :: self.size]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all workers, in place and returned; the same bits on each."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def totals(self, values: Sequence[float], device: torch.device) -> Tensor:
        """Each value summed over all workers, in float64. `device` is where the model lies: NCCL
        reduces nothing else, and the sums are not waited for."""
        return self.all_reduce(onto(device, torch.tensor(values, dtype=torch.float64)))

    def barrier(self) -> None:
        """Return once every worker has come here."""
        if self.size > 1:
            dist.barrier(self.group)

    def gather(self, value: Any) -> list[Any]:
        """What every worker holds, by rank (pickled, between the workers of one run only)."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value, group=self.group)
        return everyone

    def broadcast(self, parameters: Sequence[nn.Parameter]) -> None:
        """Overwrite the parameters by rank 0's, so that all workers start from the same bits."""
        if self.size == 1 or not parameters:
            return
        flat = nn.utils.parameters_to_vector(parameters).detach()
        dist.broadcast(flat, group=self.group, group_src=0)
        with torch.no_grad():
            for parameter, part in _parts(parameters, flat):
                parameter.copy_(part)

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over all workers, as one flat all-reduce."""
        if self.size == 1 or not parameters:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = self.all_reduce(
            torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        )
        for parameter, part in _parts(parameters, flat):
            assert parameter.grad is not None
            parameter.grad.copy_(part)


def _parts(parameters: Sequence[nn.Parameter], flat: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter with its own piece of `flat`, in the parameter's shape."""
    pieces = torch.split(flat, [parameter.numel() for parameter in parameters])
    return [(p, piece.view_as(p)) for p, piece in zip(parameters, pieces, strict=True)]
