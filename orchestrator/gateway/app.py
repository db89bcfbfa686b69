"""The gateway: OpenAI's HTTP interface as a FastAPI application over any backend that generates."""

from fastapi import APIRouter, Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from orchestrator.auth.keys import wants
from orchestrator.gateway import page
from orchestrator.gateway.access import AccessControl, Rules
from orchestrator.gateway.body import BodyLimit
from orchestrator.gateway.completions import Backend, Gateway, Readiness
from orchestrator.gateway.errors import add_handlers
from orchestrator.gateway.http import Head, Inflate
from orchestrator.gateway.openapi import Description, chats, completions, refusals
from orchestrator.gateway.services import GatewayServices
from orchestrator.rollout.catalog import ModelCatalog

OPENAPI = "/openapi.json"
NO_KEY = frozenset({"/health", "/ready", OPENAPI, *page.PATHS.values()})
"""What anybody may get: whether it runs, the page, and the description of all routes."""


def create_app(
    backend: Backend, catalog: ModelCatalog, services: GatewayServices | None = None
) -> FastAPI:
    """The application; without `services` an open one that tells nobody."""
    services = services or GatewayServices()
    gateway = Gateway(backend, catalog, services)
    app = FastAPI(
        title="moetune",
        version="1",
        description="Chat with a base model and the adapters that were promoted to names.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=gateway.lifespan,
    )
    app.state.services, app.state.gateway = services, gateway
    app.state.retry_after = gateway.retry_after
    app.include_router(_models(gateway), responses=refusals())
    app.include_router(_probes(gateway))
    for router in services.routers:
        app.include_router(
            router,
            prefix="/moetune/v1",
            dependencies=[Depends(wants(None, counts="manages"))],
            responses=refusals(),
        )
    app.include_router(page.routes())
    app.get(OPENAPI, include_in_schema=False)(Description(app).answer)
    add_handlers(app)
    app.add_middleware(
        AccessControl, Rules(app, NO_KEY), services
    )  # the last one added is asked first
    app.add_middleware(BodyLimit, services.limits.max_body_bytes)
    app.add_middleware(Inflate)
    app.add_middleware(Head)
    _let_in(app, services.cors_origins)
    return app


def _models(gateway: Gateway) -> APIRouter:
    router = APIRouter()
    router.get("/v1/models")(gateway.list_models)
    router.get("/v1/models/", include_in_schema=False)(gateway.list_models)
    router.get("/v1/models/{model:path}")(gateway.show_model)
    router.post("/v1/chat/completions", **chats())(gateway.chat)
    router.post("/v1/completions", **completions())(gateway.complete)
    return router


def _probes(gateway: Gateway) -> APIRouter:
    """Whether it is well, which anybody may ask."""
    router = APIRouter()
    router.get("/health")(gateway.health)
    not_now = {"description": "Not now.", "model": Readiness}
    router.get("/ready", response_model=Readiness, responses={503: not_now})(gateway.ready)
    return router


def _let_in(app: FastAPI, origins: tuple[str, ...]) -> None:
    """Other sites' pages may call, where their sites are named; browsers keep the others out."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),  # clients' libraries send what they like: x-stainless-os, …
            allow_private_network=True,
            expose_headers=("Retry-After", "X-Request-ID"),
        )
