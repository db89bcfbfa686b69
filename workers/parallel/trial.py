"""How long a run's own routed layers take by either exchange, measured before it takes one.

A trial holds all that the two differ in, at its real size: messages and what is waited for them,
the frozen block's work on the rows that an owner receives, the copies of the experts, and what
checkpointing repeats. Its hidden states are random: tokens scatter over the experts.
Shapes: B rows, S positions, D width.
"""

import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workers.injection.adapter import Adapter
from workers.injection.sharded import whole
from workers.injection.targets import decoder_layers
from workers.injection.wrapper import AdaptedModule
from workers.layers.ops.random_state import random_state_kept
from workers.parallel.cost import ExchangeChoice
from workers.parallel.expert_shards import ExpertShards

TRIES = 7
"""Of each exchange, in turns, after one that does not count."""
EXCHANGES = ("tokens", "weights")


@dataclass(frozen=True)
class MicroBatch:
    """What a worker has in one forward pass."""

    rows: int
    length: int
    """Tokens of a row, padding included."""
    dtype: torch.dtype
    """Of the activations."""

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return self.rows * self.length


def measured(
    model: nn.Module, adapter: Adapter, shards: ExpertShards, micro: MicroBatch
) -> dict[str, float]:
    """By exchange, the seconds of all routed layers for one micro-batch, forward and backward: the
    median, of the slowest worker. The same figures on all workers, of whom it is a collective."""
    total = dict.fromkeys(EXCHANGES, 0.0)
    _, layers = decoder_layers(model)
    modules, routers = adapter.modules, adapter.routers
    for path, alike in _kinds(modules, routers).items():
        router_ED = routers[path].weight
        shape = micro.rows, micro.length, router_ED.shape[1]
        with _training(modules[path], layers[int(path.split(".")[1])], router_ED.device):
            hidden_BSD = torch.randn(shape, dtype=micro.dtype, device=router_ED.device)
            taken = _medians(modules[path], shards, hidden_BSD.requires_grad_())
        for exchange, seconds in taken.items():
            total[exchange] += alike * seconds
    shards.traffic.take()
    return total


def _kinds(modules: dict[str, AdaptedModule], paths: Iterable[str]) -> dict[str, int]:
    """The first place of each kind, and how many there are of it."""
    kinds: dict[object, list[str]] = {}
    for path in paths:
        shapes = (parameter.shape for parameter in modules[path].adapters.parameters())
        kinds.setdefault((modules[path].feed_forward is None, *shapes), []).append(path)
    return {alike[0]: len(alike) for alike in kinds.values()}


@contextmanager
def _training(module: AdaptedModule, layer: nn.Module, device: torch.device) -> Iterator[None]:
    """The module trains, with its decoder layer's weights there, on random numbers of its own."""
    mode = module.training
    with whole(layer), random_state_kept(device):
        module.train()
        try:
            yield
        finally:
            module.train(mode)


def _medians(module: AdaptedModule, shards: ExpertShards, hidden_BSD: Tensor) -> dict[str, float]:
    tries: dict[str, list[float]] = {exchange: [] for exchange in EXCHANGES}
    for _ in range(TRIES + 1):
        for exchange, taken in tries.items():
            shards.take(ExchangeChoice(exchange))
            taken.append(_seconds(module, shards, hidden_BSD))
    medians = [statistics.median(taken[1:]) for taken in tries.values()]
    slowest = torch.tensor(medians, dtype=torch.float64, device=hidden_BSD.device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return dict(zip(tries, slowest.tolist(), strict=True))


def _seconds(module: AdaptedModule, shards: ExpertShards, hidden_BSD: Tensor) -> float:
    """One forward and backward pass, which leaves no gradient."""
    shards.mesh.world.barrier()
    _finish(hidden_BSD.device)
    started = time.perf_counter()
    again = shards.passes.recomputed
    output = checkpoint(module, hidden_BSD, use_reentrant=False) if again else module(hidden_BSD)
    trained = [hidden_BSD, *module.adapters.parameters()]
    torch.autograd.grad(output, trained, torch.ones_like(output), allow_unused=True)
    _finish(hidden_BSD.device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
