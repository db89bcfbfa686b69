"""Expert parallelism by weights: a layer's experts are gathered just before their use.

They do not stay: what the backward pass saves of them is a note of where they lay, and they are
gathered once more when the layer's gradient arrives. Where activations are checkpointed, nothing of
a layer stays anyhow, and its repeated forward pass gathers them. Their gradients are summed into
the owners' shards. Every worker runs the same collectives in the same order, whatever its tokens
are.
Shapes: W workers, N experts of a worker, E = N * W; X numbers of all a worker's experts of a layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from workers.layers.dispatch import Dispatched
from workers.layers.routing.base import Routing
from workers.parallel.collectives import Traffic
from workers.parallel.world import World


class GatheringTokenDispatcher:
    """A TokenDispatcher whose tokens stay where they are."""

    brings_rank_space = True

    def __init__(self, group: World, traffic: Traffic, *, recomputed: bool = False) -> None:
        """`recomputed`: every layer's activations are checkpointed. Its hooks must then see what is
        saved; ours would take their place, and the activations would stay."""
        self._group, self._traffic, self._recomputed = group, traffic, recomputed

    def dispatch(self, hidden_TD: Tensor, routing: Routing) -> Dispatched:
        """Every token as it stands, with its chosen experts."""
        visit = Visit(self._group, self._traffic)
        experts = routing.logits_TE.shape[1]
        return Dispatched(hidden_TD, routing.expert_TK, routing.gate_TK, experts, journey=visit)

    @contextmanager
    def experts(
        self, shards: Callable[[], Sequence[Tensor]], sent: Dispatched
    ) -> Iterator[Sequence[Tensor]]:
        """The experts of all workers, in the order of the workers."""
        visit: Visit = sent.journey
        whole: Sequence[Tensor] = _Gather.apply(visit, *shards())  # type: ignore[no-untyped-call]
        hooks = torch.autograd.graph.saved_tensors_hooks(visit.note, visit.find)
        with nullcontext() if self._recomputed else hooks:
            yield whole

    def combine(self, parts: Sequence[Tensor], sent: Dispatched) -> list[Tensor]:
        """The results as they stand; their gradients find the experts there again."""
        visit: Visit = sent.journey
        if self._recomputed:
            visit.forget()
            return list(parts)
        visit.close()
        return list(_Reopen.apply(visit, *parts))  # type: ignore[no-untyped-call]


class _GatheredPlace(NamedTuple):
    """Where a saved tensor lay among the gathered ones."""

    tensor: int
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]


class Visit:
    """The gathered experts of one layer in one forward pass, and again in its backward pass."""

    def __init__(self, group: World, traffic: Traffic) -> None:
        self._group, self._traffic = group, traffic
        self._shards: list[Tensor] = []
        self._whole: list[Tensor] = []

    def open(self, shards: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Gather the experts; `shards` are this worker's, the first time."""
        if shards is not None:
            self._shards = [one.detach().contiguous() for one in shards]
        self._whole = [self._gathered(shard) for shard in self._shards]
        return self._whole

    def close(self) -> None:
        """Let go of what others sent."""
        self._whole = []

    def forget(self) -> None:
        """Let go of our shards too, which may be copies: nobody will open it again."""
        self._shards = self._whole = []

    def scatter(self, grad_whole: Tensor) -> Tensor:
        """The sum over the workers of the gradients of our shard."""
        grad = grad_whole.new_empty(len(grad_whole) // self._group.size, *grad_whole.shape[1:])
        dist.reduce_scatter_single(grad, grad_whole.contiguous(), group=self._group.group)
        self._traffic.count("gradients", grad_whole, len(grad_whole) - len(grad))
        return grad

    def note(self, tensor: Tensor) -> Tensor | _GatheredPlace:
        """What autograd keeps of a tensor that it wants again."""
        for index, whole in enumerate(self._whole):
            if tensor.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr():
                return _GatheredPlace(
                    index, int(tensor.storage_offset()), tensor.shape, tensor.stride()
                )
        return tensor

    def find(self, kept: Tensor | _GatheredPlace) -> Tensor:
        """The tensor again."""
        if isinstance(kept, Tensor):
            return kept
        return self._whole[kept.tensor].as_strided(kept.shape, kept.stride, kept.offset)

    def _gathered(self, shard: Tensor) -> Tensor:
        size = self._group.size
        whole = shard.new_empty(size * len(shard), *shard.shape[1:])
        dist.all_gather_single(whole, shard, group=self._group.group)
        self._traffic.count("weights", shard, (size - 1) * len(shard))
        return whole


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, visit: Visit, *shards: Tensor) -> tuple[Tensor, ...]:
        ctx.visit = visit
        # Fresh ones: those that the visit holds must not carry the graph.
        return tuple(whole.view_as(whole) for whole in visit.open(shards))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        visit: Visit = ctx.visit
        visit.close()  # All that wanted the experts are through.
        return None, *(visit.scatter(grad) for grad in grads)


class _Reopen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, visit: Visit, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.visit = visit
        ctx.set_materialize_grads(False)  # Of a rank space that no loss reads there is none.
        return tuple(part.view_as(part) for part in parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        visit: Visit = ctx.visit
        visit.open()
        return None, *grads
