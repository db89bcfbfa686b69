"""Backends for tests in which nothing is generated."""

from typing import Any

from workers.engine.request import AdapterRef


class Nowhere:
    """One that nobody asks."""

    def generate(self, request: Any) -> Any:
        raise NotImplementedError

    async def load(self, adapter: AdapterRef) -> None:
        pass

    async def ready(self) -> bool:
        return True
