"""Workers that meet at one address of the machine."""

import json
import os
import socket
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.listening import listeners
from tests.processes import run_together
from workers.parallel.rendezvous import Rendezvous


def _meet(rank: int, host: str, file: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if rank == 0:
        opened = Rendezvous.opened(host)
        file.with_suffix(".new").write_text(json.dumps(asdict(opened)))
        file.with_suffix(".new").rename(file)
    while not file.exists():
        time.sleep(0.01)
    Rendezvous(**json.loads(file.read_text())).join("gloo", rank, 3, timedelta(seconds=60))
    total = torch.tensor([float(rank)])
    dist.all_reduce(total)
    assert total.item() == 3
    there = listeners([psutil.Process()])
    assert there
    assert [one for one in there if not one.on_loopback] == []
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_workers_meet_at_one_address(host: str, tmp_path: Path) -> None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, 0), family=family).close()
    except OSError as error:
        pytest.skip(f"{host}: {error.strerror}")
    run_together(_meet, host, tmp_path / "rendezvous", processes=3)
