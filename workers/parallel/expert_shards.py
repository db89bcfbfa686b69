"""Which part of an adapter's experts this worker holds, and how to have them all for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from workers.config.base import InputError
from workers.injection.adapter import Adapter
from workers.layers.dispatch import LocalTokenDispatcher, TokenDispatcher
from workers.parallel.collectives import Traffic
from workers.parallel.cost import ExchangeChoice, Passes
from workers.parallel.mesh import Mesh
from workers.parallel.token_dispatch import AllToAllTokenDispatcher
from workers.parallel.weight_gather import GatheringTokenDispatcher


class ExpertShards:
    """An adapter whose experts are in shards over `mesh.ep`: worker r holds the r-th part of them,
    by global expert id. With one worker there it is the adapter as it was."""

    def __init__(
        self,
        adapter: Adapter,
        mesh: Mesh,
        choice: ExchangeChoice | None = None,
        passes: Passes | None = None,
    ) -> None:
        """Keeps this worker's experts only, and hands the layers their dispatcher. Adapters must be
        equal on all workers; with one there, no choice is needed."""
        self.mesh, self.choice, self.traffic = mesh, choice, Traffic()
        self._adapter, self.passes = adapter, passes or Passes()
        self.parameters = dict(adapter.named_expert_parameters()) if mesh.ep.size > 1 else {}
        """Those in shards, by canonical name."""
        if not self.parameters or choice is None:
            return
        for name, parameter in self.parameters.items():
            if len(parameter) % mesh.ep.size:
                raise InputError(
                    f"parallel.ep_size is {mesh.ep.size}, but must divide the {len(parameter)} "
                    f"experts of {name}"
                )
        self.take(choice)
        for parameter in self.parameters.values():
            parameter.data = self.own(parameter.data)

    def take(self, choice: ExchangeChoice) -> None:
        """Let tokens and experts meet in this way from now on."""
        ep, traffic, passes = self.mesh.ep, self.traffic, self.passes
        self.choice = choice
        self._dispatcher: TokenDispatcher = (
            AllToAllTokenDispatcher(ep, traffic, brings_rank_space=passes.rank_space)
            if choice.exchange == "tokens"
            else GatheringTokenDispatcher(ep, traffic, recomputed=passes.recomputed)
        )
        self._adapter.set_dispatcher(self._dispatcher)

    def own(self, whole: Tensor) -> Tensor:
        """This worker's part of a tensor with a row for each expert."""
        return whole.chunk(self.mesh.ep.size)[self.mesh.ep.rank].clone()

    def whole(self, shard: Tensor) -> Tensor:
        """The parts of all workers, by global expert id; a collective."""
        ep = self.mesh.ep
        if ep.size == 1:
            return shard
        gathered = shard.new_empty(ep.size * len(shard), *shard.shape[1:])
        dist.all_gather_single(gathered, shard.contiguous(), group=ep.group)
        return gathered

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Every worker has all experts for the length of the block, for evaluation, where workers
        do not keep step, and for files. Weights that are changed inside are kept."""
        if not self.parameters:
            yield
            return
        self._adapter.set_dispatcher(LocalTokenDispatcher())
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter.data = self.whole(parameter.data)
        try:
            yield
        finally:
            self._adapter.set_dispatcher(self._dispatcher)
            for parameter in self.parameters.values():
                parameter.data = self.own(parameter.data)
