"""How the workers of a Ray Train group find each other: at the address of the first one's node.

So the group of a cluster on loopback is reached from its own machine only.
"""

from datetime import timedelta
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from workers.parallel.rendezvous import Rendezvous


class ProcessGroupConfig(TorchConfig):  # type: ignore[misc]
    """Ray's, but for the rendezvous."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets the group up in the workers and takes it down."""
        return _ProcessGroup


class _ProcessGroup(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Ray calls it whenever it has started the workers' processes."""
        worker_group.execute(_set_torch_distributed_env_vars)  # DeepSpeed reads them
        meeting = worker_group.execute_single(0, _opened)
        size, timeout = len(worker_group), timedelta(seconds=backend_config.timeout_s)
        joining = [
            worker_group.execute_single_async(
                rank, meeting.join, backend_config.backend, rank, size, timeout
            )
            for rank in range(size)
        ]
        ray.get(joining)


def _opened() -> Rendezvous:
    return Rendezvous.opened(ray.util.get_node_ip_address())
