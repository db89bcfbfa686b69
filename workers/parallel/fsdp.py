"""FSDP2: parameters, gradients and the optimizer's state in shards over all workers.

The base was cut while it was read (workers.models.sharded_loading), layer by layer. Each of the
adapter's layers is a unit of its own beside it: float32 next to a base that may be bfloat16, and
the only one whose gradients travel.
"""

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from workers.config.train import OptimizerSpec
from workers.injection.adapter import Adapter
from workers.injection.wrapper import AdaptedModule
from workers.parallel.expert_shards import ExpertShards
from workers.parallel.optimizer import make_optimizer, rate_groups
from workers.parallel.update import NamedUpdate


class Sharded(NamedUpdate):
    """An `Update` with the adapter in shards over all workers. Experts that are in shards already,
    by expert parallelism, stay as they are."""

    independent = False

    def __init__(
        self, model: nn.Module, adapter: Adapter, spec: OptimizerSpec, shards: ExpertShards
    ) -> None:
        """`model` holds this one adapter. Needs a process group."""
        self.world, self._shards = shards.mesh.world, shards
        own = list(shards.parameters.values())
        shards.mesh.dp.broadcast(own)
        self._cut(model, adapter, own)
        named = dict(adapter.named_parameters())
        own_named = {name: named[name] for name in shards.parameters}
        rest = {name: one for name, one in named.items() if name not in shards.parameters}
        self._own, self._rest = list(own_named.values()), list(rest.values())
        groups = [group for part in (rest, own_named) for group in rate_groups(part, spec)]
        super().__init__(named, make_optimizer(groups, spec))

    def _cut(self, model: nn.Module, adapter: Adapter, own: Collection[nn.Parameter]) -> None:
        former = [one for one in adapter.parameters() if not _among(one, own)]
        self.world.broadcast(former)
        mesh = init_device_mesh(next(adapter.parameters()).device.type, (self.world.size,))
        adapted = [module for module in model.modules() if isinstance(module, AdaptedModule)]
        for layer in (layer for module in adapted for layer in module.adapters.values()):
            if all(_among(one, own) for one in layer.parameters()):
                continue
            unit = fully_shard(
                layer,
                mesh=mesh,
                reshard_after_forward=True,
                shard_placement_fn=_evenly(self.world.size),
                ignored_params=set(own),
            )
            # Losses are divided by the counts of the whole step: sums, not means. gloo knows no
            # reduction that scales, and a sum needs none.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        for parameter in former:  # The layers keep a list of them.
            parameter.data = parameter.data.new_empty(0)

    def reduce(self) -> None:
        """See Update: each unit's gradients went to their shards as soon as they were there; all
        but the experts' are summed already."""
        self._shards.mesh.dp.add_gradients(self._own)

    def clip(self, max_norm: float) -> Tensor:
        """See Update."""
        norm = _norm(self._rest)
        if self._own:
            norm = (
                norm.square() + self._shards.mesh.ep.all_reduce(_norm(self._own).square())
            ).sqrt()
        for part in (self._rest, self._own):
            torch.nn.utils.clip_grads_with_norm_(part, max_norm, norm)
        return norm

    def _whole(self, name: str, tensor: Tensor) -> Tensor:
        del name  # The tensor says itself how it lies.
        if isinstance(tensor, DTensor):
            return tensor.full_tensor().cpu()
        return self._shards.whole(tensor).cpu()

    def _part(self, name: str, whole: Tensor) -> Tensor:
        like = self._named[name]
        whole = whole.to(like.device, like.dtype)
        if isinstance(like, DTensor):
            return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
        return self._shards.own(whole)


def _evenly(workers: int) -> Callable[[nn.Parameter], Shard | None]:
    """Cut a parameter along a dimension that the workers divide: attention's LoRA has one expert,
    and cut along these it would lie on the first worker alone."""

    def place(parameter: nn.Parameter) -> Shard | None:
        even = (dim for dim, size in enumerate(parameter.shape) if size % workers == 0)
        return Shard(next(even, 0))

    return place


def _norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    grads = [one.grad for one in parameters if one.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _among(parameter: nn.Parameter, others: Collection[nn.Parameter]) -> bool:
    return any(parameter is other for other in others)
