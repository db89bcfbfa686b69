"""Where the processes of a local cluster listen."""

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Listener:
    """A port that a process has opened."""

    process: str
    """The process's command line, which Ray's workers replace by what they do."""
    host: str
    port: int

    @property
    def on_loopback(self) -> bool:
        """Whether it is reached from this machine only."""
        return ip_address(self.host).is_loopback


def cluster_processes(folder: Path) -> list[psutil.Process]:
    """Processes whose command line or environment names the folder of a cluster."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) + process.environ().get(
                "RAY_AUTH_TOKEN_PATH", ""
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def listeners(processes: list[psutil.Process]) -> list[Listener]:
    """All of their open ports; what has ended meanwhile has none."""
    found = []
    for process in processes:
        try:
            name, connections = " ".join(process.cmdline()), process.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        for one in connections:
            if one.status == psutil.CONN_LISTEN:
                found.append(Listener(name, one.laddr.ip.removeprefix("::ffff:"), one.laddr.port))
    return found
