"""Which layout a run's specification asks for."""

from torch import nn

from workers.config.train import TrainSpec
from workers.injection.adapter import Adapter
from workers.parallel.expert_shards import ExpertShards
from workers.parallel.update import Replicated, Update


def update_for(spec: TrainSpec, model: nn.Module, adapter: Adapter, shards: ExpertShards) -> Update:
    """The Update of `parallel.strategy`, for the one adapter on `model`; a collective.

    A worker alone has nothing to share out, whatever the strategy: an elastic run may come down to
    one.
    """
    strategy, world = spec.parallel.strategy, shards.mesh.world
    if strategy == "ddp" or world.size == 1:
        return Replicated(adapter, spec.optimizer, shards)
    if strategy == "fsdp2":
        from workers.parallel.fsdp import Sharded

        return Sharded(model, adapter, spec.optimizer, shards)
    from workers.parallel.deepspeed import DeepSpeedUpdate

    return DeepSpeedUpdate(model, adapter, spec, world)
