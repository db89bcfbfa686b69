"""From a request's bytes to what it asks, or to the first thing that is wrong with it."""

import asyncio
import time
from typing import TypeVar

from pydantic import ValidationError

from orchestrator.openai.neutral import UNSUPPORTED
from orchestrator.openai.prompt import TAGS
from orchestrator.openai.schema import CompletionBase
from workers.engine.request import RequestError
from workers.engine.turns import Turns

LARGE = 2**16
"""Bytes of a body that one other request may wait for."""
REST = 4
"""Times as long as a large body took to read, its tenant's next one waits."""
BodyT = TypeVar("BodyT", bound=CompletionBase)


async def parsed(body: type[BodyT], raw: bytes, turns: Turns, tenant: str) -> BodyT:
    """`parse`, where it may take long beside the event loop and in this tenant's turn. It lets no
    other thread run for most of its time, so the tenant rests for a multiple of it."""
    if len(raw) <= LARGE:
        return parse(body, raw)
    async with turns.of(tenant):
        begun = time.perf_counter()
        try:
            return await asyncio.to_thread(parse, body, raw)
        finally:
            turns.rest(tenant, REST * min(time.perf_counter() - begun, 1))


def parse(body: type[BodyT], raw: bytes) -> BodyT:
    """Read a request's body; RequestError names the first field that is wrong."""
    try:
        return body.model_validate_json(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    path = [str(part) for part in first["loc"] if part not in TAGS]
    param = ".".join(path) or None
    message = first["msg"].removeprefix("Value error, ")
    match first["type"]:
        case "extra_forbidden":
            raise RequestError(f"{param} is not supported", param, code="unsupported_parameter")
        case kind if kind == UNSUPPORTED:
            raise RequestError(f"{param}: {message}", param, code=UNSUPPORTED)
        case "missing":
            raise RequestError(f"{param} is missing", param, code="missing_required_parameter")
        case "json_invalid":
            raise RequestError(f"the body is no JSON: {message}", code="invalid_json")
    where = f"{param}: " if param else ""
    raise RequestError(f"{where}{message}", param, code="invalid_value")
