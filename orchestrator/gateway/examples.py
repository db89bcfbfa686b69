"""Example questions for the gateway's page: those of a version's own validation rows alone.

Rows may be private, so a gateway tells none unless `serve.examples` says how many.
"""

import asyncio
from pathlib import Path as Folder
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from orchestrator.auth.keys import Caller, wants
from orchestrator.config.cluster import ClusterSpec
from orchestrator.gateway.management_routes import NAME
from orchestrator.registry.models import BASE
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.tuning.study import trial_name
from workers.engine.request import RequestError
from workers.run.samples import read_samples

Reader = Annotated[Caller, Depends(wants("infer"))]


class Examples:
    """Reads the questions that trials have left (`workers.run.samples`)."""

    def __init__(self, registry: Registry, storage: str | Folder, count: int) -> None:
        """`count`: so many of a version, at most."""
        self._registry, self._count = registry, count
        self._cluster = ClusterSpec(storage=str(storage))

    def of(self, version: str) -> list[str]:
        """Questions of the rows that a version was measured on; none where nobody left any."""
        found = self._registry.version(version)
        if self._count == 0 or found.trial is None:
            return []
        folder = self._cluster.study_folder(found.study) / "trials" / trial_name(found.trial)
        samples = read_samples(folder / "samples.json")
        whole = dict.fromkeys(one.question for one in samples if one.whole)
        return list(whole)[: self._count]


def routes(examples: Examples, catalog: ModelCatalog) -> APIRouter:
    """`GET /examples/{name}`, to be included under /moetune/v1 for keys that may ask (`infer`)."""
    router = APIRouter()

    @router.get("/examples/{name}")
    async def questions(name: Annotated[str, Path(pattern=NAME)], _: Reader) -> dict[str, Any]:
        """Questions to try on a name, of the rows that its version was measured on."""
        version = _version(catalog, name)
        found = await asyncio.to_thread(examples.of, version) if version else []
        return {"name": name, "questions": found}

    return router


def _version(catalog: ModelCatalog, name: str) -> str | None:
    """What a name's roll-out has under NAME, or as NAME@VERSION; nothing is loaded for that."""
    bare, _, exact = name.partition("@")
    state = catalog.states.get(bare)
    if state is None:
        raise RequestError(f"nothing was promoted to {bare}", "name", 404, "not_found")
    version = exact or state.champion
    return version if version != BASE and version in state.concerned else None
