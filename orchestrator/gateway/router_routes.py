"""Router health over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path

from orchestrator.router_health.monitor import RouterHealth
from orchestrator.router_health.report import Health

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}(@[0-9a-f]{4,64})?$"


def routes(monitor: RouterHealth) -> APIRouter:
    """`GET /health/{name}`, to be included under /moetune/v1 for keys that may ask (`infer`)."""
    router = APIRouter()

    @router.get("/health/{name}")
    def health(name: Annotated[str, Path(pattern=NAME)]) -> Health:
        """Load, balance and drift of each layer of the versions that answered to a name."""
        return monitor.health(name)  # no coroutine: it may calibrate, and FastAPI has threads

    return router
