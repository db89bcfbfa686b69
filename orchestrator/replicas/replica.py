"""The engine as a Ray Serve deployment: what each of its replicas runs."""

import logging
import platform
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pkgutil import resolve_name

from orchestrator.registry.registry import Registry
from orchestrator.replicas.endpoint import Base, EndpointSpec, begun
from orchestrator.replicas.golden import Golden, GoldenAnswer
from orchestrator.replicas.golden_store import FirstAnswers
from orchestrator.replicas.readiness import Acknowledged, Generates, OtherBase, acknowledge, hold
from orchestrator.rollout.loader import adapter_of, answering, wanted
from workers.config.base import InputError
from workers.engine.protocol import Engine
from workers.engine.request import AdapterRef, Chunk, TextRequest

log = logging.getLogger(__name__)


class Replica:
    """One engine with its own copy of the base model. Who asks says which base is meant."""

    def __init__(self, spec: EndpointSpec) -> None:
        from ray.serve import get_replica_context

        from orchestrator.telemetry.serving_metrics import EngineMetrics
        from workers.engine.text_engine import TextEngine

        self._base, self._golden = spec.base, spec.golden()
        self._engine: Engine = resolve_name(spec.engine)(spec.model, spec.limits())
        self._hardware = hardware_kind(self._engine.device)
        self._text = TextEngine(self._engine, self._engine.tokenizer)
        EngineMetrics(self._engine, str(get_replica_context().rank.rank))
        catch_up(self._engine, spec)
        self._promised = promised(self._engine.loaded(), spec, self._hardware)
        begun()

    async def generate(self, base: Base, request: TextRequest) -> AsyncGenerator[Chunk]:
        """See `orchestrator.gateway.completions.Backend`."""
        self._must_be(base)
        async with aclosing(self._text.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def encode(
        self, base: Base, requests: Sequence[TextRequest]
    ) -> tuple[tuple[int, ...], ...]:
        """See `orchestrator.gateway.completions.Backend`."""
        self._must_be(base)
        return await self._text.encode(requests)

    async def load(self, base: Base, adapter: AdapterRef) -> None:
        """See `orchestrator.gateway.completions.Backend`; for this replica."""
        self._must_be(base)
        await self._text.load(adapter)

    async def unload(self, base: Base, slot: str) -> None:
        """Drop a slot, once the requests in it have ended."""
        self._must_be(base)
        await self._text.unload(slot)

    async def keep(self, base: Base, slots: Collection[str]) -> None:
        """Say which slots no others may drive out."""
        self._must_be(base)
        await self._text.keep(slots)

    async def check(self, base: Base, adapter: AdapterRef, golden: Golden) -> Acknowledged:
        """This replica's word on a version; see `orchestrator.replicas.readiness`."""
        self._must_be(base)
        said = await acknowledge(self._text, adapter, golden)
        return replace(said, hardware=self._hardware)

    async def ready(self, base: Base) -> bool:
        """Whether the engine generates."""
        self._must_be(base)
        return await self._text.ready()

    async def check_health(self) -> None:
        """Serve replaces a replica whose engine cannot go on. It asks before the first request
        too: one that does not answer as others did before it gets none."""
        if not self._engine.healthy:
            raise RuntimeError("the engine has stopped")
        await prove(self._text, self._golden, self._promised)
        self._promised = ()

    def _must_be(self, base: Base) -> None:
        if base != self._base:
            raise OtherBase(f"this replica has {self._base[0]}, not {base[0]}")

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


def catch_up(engine: Engine, spec: EndpointSpec) -> None:
    """Load what the other replicas hold already, before any request comes here. What cannot be
    loaded now is loaded when it is asked for, or refused then."""
    try:
        registry = Registry(spec.store_url, spec.storage)
        states = list(registry.rollouts().values())
        engine.keep(answering(states))
        versions = [registry.version(id) for id in wanted(states, spec.serve.max_adapters)]
        registry.close()
    except InputError as error:
        log.warning("this replica starts without adapters: %s", error)
        return
    for version in versions:
        try:
            registry.verify(version)
            engine.load(adapter_of(version))
        except InputError as error:  # of another base, perhaps
            log.info("version %s is not loaded: %s", version.id, error)


def hardware_kind(device: str) -> str:
    """What kind of hardware this process computes on: `cpu x86_64`, or the GPU's name."""
    if device != "cuda":
        return f"{device} {platform.machine()}"
    import torch

    return torch.cuda.get_device_name()


Promised = tuple[tuple[AdapterRef, GoldenAnswer], ...]
"""Versions, and what was answered to the golden prompt when they were first acknowledged."""


def promised(loaded: Iterable[str], spec: EndpointSpec, hardware: str) -> Promised:
    """What is to be expected of versions that a replica has loaded by itself. Nothing of those that
    were never acknowledged, nor where the registry cannot be read."""
    registry = Registry(spec.store_url, spec.storage)
    first = FirstAnswers(registry, spec.golden(), spec.model)
    try:
        versions = [registry.version(id) for id in loaded]
        found = [(version, first.get(version.digest, hardware)) for version in versions]
    except InputError as error:
        log.warning("this replica's answers are not checked: %s", error)
        return ()
    finally:
        registry.close()
    return tuple((adapter_of(v), answer) for v, answer in found if answer)


async def prove(engine: Generates, golden: Golden, promised: Promised) -> None:
    """InputError where an answer is another one than promised."""
    for adapter, kept in promised:
        said = await acknowledge(engine, adapter, golden)
        hold(adapter, said.answer, kept, golden.tolerance)
