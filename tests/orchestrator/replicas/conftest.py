"""Logs, versions and promotions to work on."""

from tests.orchestrator.registries import begin, log, registry, versions

__all__ = ["begin", "log", "registry", "versions"]
