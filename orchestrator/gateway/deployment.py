"""The gateway as a Ray Serve deployment: all that one process of it consists of."""

from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI

from orchestrator.auth.keys import KeyRing
from orchestrator.auth.made_keys import MadeKeys
from orchestrator.auth.rate_limit import RateLimiter
from orchestrator.auth.sync import KeySync
from orchestrator.auth.wrong_keys import WrongKeys
from orchestrator.gateway.app import create_app
from orchestrator.gateway.examples import Examples
from orchestrator.gateway.examples import routes as example_routes
from orchestrator.gateway.services import GatewayServices, HealthServices, RolloutServices
from orchestrator.registry.presence import Presence
from orchestrator.registry.registry import Registry
from orchestrator.replicas.endpoint import EndpointSpec, Serving, begun
from orchestrator.replicas.golden_store import FirstAnswers
from orchestrator.replicas.handle import Replicas
from orchestrator.replicas.readiness import TwoPhases
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.rollout.kept import keep_all
from orchestrator.telemetry.serving_metrics import RequestMetrics
from workers.config.base import InputError

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


class Ingress:
    """Makes its application when it starts."""

    def __init__(self, spec: EndpointSpec, replicas: "DeploymentHandle") -> None:
        self._spec, self._backend = spec, Replicas(replicas, spec.base)
        self._registry = Registry(spec.store_url, spec.storage)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve's hook for an application that is made on the replica."""
        spec = self._spec
        golden = spec.golden()
        first = FirstAnswers(self._registry, golden, spec.model)
        ready = TwoPhases(self._backend, golden, first)
        catalog = ModelCatalog(
            self._registry, spec.base_id, ready, self._backend.unload, spec.serve.max_adapters
        )
        self._gateway_app = create_app(self._backend, catalog, self._services(catalog))
        begun()
        return self._gateway_app

    async def serving(self, name: str | None) -> Serving:
        """What `deploy` wants to know before it says that all is well."""
        state, refused = self._gateway_app.state, None
        try:
            if name is not None:
                await state.gateway.find(name)
        except InputError as error:
            refused = str(error)
        await self._presence.tell()  # from now on nobody deletes the name unknowingly
        return Serving(needs_key=not state.services.keys.open, refused=refused)

    async def drain(self) -> None:
        """Let no more requests in; returns when the last has ended."""
        await self._gateway_app.state.gateway.drain()

    def _services(self, catalog: ModelCatalog) -> GatewayServices:
        serve, key_sync = self._spec.serve, KeySync(self._spec.store_url)
        read = MadeKeys(key_sync.read, self._spec.storage, key_sync.given_up)
        keys, metrics = KeyRing(self._spec.accepted_key, read), RequestMetrics()
        limiter = RateLimiter(serve.limits)
        health = HealthServices.of(self._registry, serve, self._spec.storage)
        rollout = RolloutServices.of(self._registry, catalog, serve.guard, health.monitor.drift)
        examples = Examples(self._registry, self._spec.storage, serve.examples)
        self._presence = Presence(self._spec.store_url, lambda: catalog.names)
        return GatewayServices(
            keys=keys,
            limiter=limiter,
            limits=serve.limits,
            max_new_tokens=serve.max_new_tokens,
            observers=(rollout.observe, health.observe, metrics),
            texts=serve.audit.text,
            routers=(rollout.router, health.router, example_routes(examples, catalog)),
            tasks=(
                partial(key_sync.run, keys, limiter),
                partial(keep_all, self._backend.keep, lambda: catalog.led_to),
                rollout.run,
                rollout.show,
                self._presence.run,
                health.run,
            ),
            cors_origins=serve.cors_origins,
            allowed_hosts=serve.allowed_hosts,
            wrong_keys=WrongKeys(metrics.wrong_key),
        )
