"""What stands around the gateway's routes."""

from dataclasses import dataclass, field

from fastapi import APIRouter

from orchestrator.answered import Observer
from orchestrator.edge.keys import KeyRing


@dataclass(frozen=True)
class Edge:
    """The gateway's surroundings. The defaults are an open gateway that tells nobody."""

    keys: KeyRing = field(default_factory=KeyRing)
    observers: tuple[Observer, ...] = ()
    """Called once for every request that ended."""
    routers: tuple[APIRouter, ...] = ()
    """Further routes, under /moetune/v1. Each of them says with `wants` which keys it takes."""
