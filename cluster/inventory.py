"""What a connected cluster has."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """One machine of the cluster."""

    id: str
    host: str
    cpus: float
    gpus: float
    memory_bytes: int


@dataclass(frozen=True)
class Inventory:
    """The living nodes."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """CPUs in all."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs in all."""
        return sum(node.gpus for node in self.nodes)

    def __str__(self) -> str:
        count = len(self.nodes)
        nodes = f"{count} node{'' if count == 1 else 's'}"
        return f"{nodes}, {self.cpus:g} CPUs, {self.gpus:g} GPUs"


def inventory() -> Inventory:
    """Ask the cluster that this process is connected to."""
    import ray

    return Inventory(
        tuple(
            Node(
                id=node["NodeID"],
                host=node["NodeManagerAddress"],
                cpus=node["Resources"].get("CPU", 0.0),
                gpus=node["Resources"].get("GPU", 0.0),
                memory_bytes=int(node["Resources"].get("memory", 0)),
            )
            for node in ray.nodes()
            if node["Alive"]
        )
    )
