"""A gateway over a real engine; logs, versions and promotions to work on."""

from tests.orchestrator.gateways import engine, open_gateway
from tests.orchestrator.registries import begin, log, registry, versions

__all__ = ["begin", "engine", "log", "open_gateway", "registry", "versions"]
