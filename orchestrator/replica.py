"""The engine as a Ray Serve deployment: what each of its replicas runs."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from orchestrator.endpoint import EndpointSpec
from orchestrator.registry import Registry
from orchestrator.rollout.acknowledge import Acknowledged, Golden, acknowledge
from orchestrator.rollout.loaded import wanted
from workers.engine.protocol import Engine
from workers.engine.request import Adapter, Chunk, TextRequest
from workers.spec import InputError

log = logging.getLogger(__name__)


class Replica:
    """One engine with its own copy of the base model."""

    def __init__(self, spec: EndpointSpec) -> None:
        from ray.serve import get_replica_context

        from orchestrator.edge.metrics import EngineMetrics
        from workers.engine.engine import ContinuousEngine
        from workers.engine.text import TextEngine
        from workers.model import load_base

        base = load_base(spec.model)
        self._engine = ContinuousEngine(base, spec.limits())
        self._text = TextEngine(self._engine, base.tokenizer)
        EngineMetrics(self._engine, str(get_replica_context().rank.rank))
        catch_up(self._engine, spec)

    async def generate(self, request: TextRequest) -> AsyncGenerator[Chunk]:
        """See `orchestrator.gateway.Backend`."""
        async with aclosing(self._text.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def load(self, adapter: Adapter) -> None:
        """See `orchestrator.gateway.Backend`; for this replica."""
        await self._text.load(adapter)

    async def unload(self, slot: str) -> None:
        """Drop a slot, once the requests in it have ended."""
        await self._text.unload(slot)

    async def check(self, adapter: Adapter, golden: Golden) -> Acknowledged:
        """This replica's word on a version; see `orchestrator.rollout.acknowledge`."""
        return await acknowledge(self._text, adapter, golden)

    async def ready(self) -> bool:
        """Whether the engine generates."""
        return await self._text.ready()

    async def check_health(self) -> None:
        """Serve replaces a replica whose engine cannot go on."""
        if not self._engine.healthy:
            raise RuntimeError("the engine has stopped")

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


def catch_up(engine: Engine, spec: EndpointSpec) -> None:
    """Load what the other replicas hold already, before any request comes here. What cannot be
    loaded now is loaded when it is asked for, or refused then."""
    try:
        registry = Registry(spec.store_url, spec.storage)
        states = list(registry.rollouts().values())
        versions = [registry.version(id) for id in wanted(states, spec.serve.max_adapters)]
        registry.close()
    except InputError as error:
        log.warning("this replica starts without adapters: %s", error)
        return
    for version in versions:
        try:
            engine.load(Adapter(version.id, str(version.folder)))
        except InputError as error:  # of another base, perhaps
            log.info("version %s is not loaded: %s", version.id, error)
