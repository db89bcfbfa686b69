"""The gateway over a real engine."""

from tests.orchestrator.gateways import engine, open_gateway

__all__ = ["engine", "open_gateway"]
