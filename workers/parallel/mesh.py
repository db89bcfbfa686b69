"""The workers of a run as a mesh: copies of the experts by shards of them."""

from dataclasses import dataclass, field

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from workers.config.parallel import ParallelSpec
from workers.parallel.world import World


@dataclass(frozen=True)
class Mesh:
    """One worker's place in DeviceMesh(("dp", "ep")): the experts are in shards over `ep`, and the
    workers along `dp` have the same shard. Neighbours in rank share a copy of the experts, because
    neighbours have the faster wires. All workers have rows of their own."""

    world: World = field(default_factory=World)
    ep: World = field(default_factory=World)
    """The workers that share one copy of the experts."""
    dp: World = field(default_factory=World)
    """The workers that have the same experts as this one."""

    @classmethod
    def of(cls, spec: ParallelSpec) -> "Mesh":
        """The mesh of the default process group, which may be none; a collective."""
        world = World.current()
        if world.size == 1:
            return cls()
        if spec.ep_size == 1:
            return cls(world, World(), world)
        shape = (world.size // spec.ep_size, spec.ep_size)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        groups = init_device_mesh(device, shape, mesh_dim_names=("dp", "ep"))
        dp, ep = (World.of(groups.get_group(name)) for name in ("dp", "ep"))
        return cls(world, ep, dp)
