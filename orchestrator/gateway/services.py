"""What stands around the gateway's routes."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter

from orchestrator.auth.keys import KeyRing
from orchestrator.auth.rate_limit import Meter
from orchestrator.auth.wrong_keys import WrongKeys
from orchestrator.config.edge_limits import LimitsSpec
from orchestrator.telemetry.request_record import Observer
from workers.engine.request import Limits

Task = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Edge:
    """The gateway's surroundings. The defaults are an open gateway that tells nobody."""

    keys: KeyRing = field(default_factory=KeyRing)
    meter: Meter = field(default_factory=Meter)
    limits: LimitsSpec = field(default_factory=LimitsSpec)
    max_new_tokens: int = Limits().max_new_tokens
    """Longest answer of the engine."""
    observers: tuple[Observer, ...] = ()
    """Called once for every request that ended."""
    texts: bool = False
    """Whether observers are told prompts and answers."""
    routers: tuple[APIRouter, ...] = ()
    """Further routes, under /moetune/v1, for all who have a key. What changes something says with
    `wants` which scope it takes."""
    tasks: tuple[Task, ...] = ()
    """Run for as long as the application does; cancelled at its end."""
    cors_origins: tuple[str, ...] = ()
    """Other sites whose pages may call the gateway."""
    allowed_hosts: tuple[str, ...] = ()
    """Names beyond loopback's that a Host header may have where no key is set."""
    wrong_keys: WrongKeys = field(default_factory=WrongKeys)
