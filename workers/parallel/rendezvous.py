"""Where the workers of one run meet: a store that the first of them serves, at one address.

torch's own rendezvous (`env://`, `tcp://`) listens on all interfaces of the machine.
"""

import socket
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist


@dataclass(frozen=True)
class Rendezvous:
    """An address that is listened on in the process of the first worker, from `opened` on."""

    host: str
    port: int
    listener: int
    """File descriptor of the listening socket, in that process."""

    @classmethod
    def opened(cls, host: str) -> "Rendezvous":
        """Listen at this address of the machine, on a free port. The first worker calls it."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family, backlog=socket.SOMAXCONN) as server:
            port = int(server.getsockname()[1])
            return cls(host, port, server.detach())

    def join(self, backend: str, rank: int, size: int, timeout: timedelta) -> None:
        """Make the default process group of all `size` workers; each calls it."""
        store = dist.TCPStore(  # type: ignore[attr-defined]
            self.host,
            self.port,
            size,
            is_master=rank == 0,
            timeout=timeout,
            master_listen_fd=self.listener if rank == 0 else None,
        )
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
