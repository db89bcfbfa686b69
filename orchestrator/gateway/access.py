"""Who may ask what, told before a byte of a request's body is read."""

import re
import secrets
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.routing import iter_route_contexts
from starlette._utils import get_route_path  # what routes match; the URL has the Host header in it
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.address import is_loopback
from orchestrator.auth.keys import Wants
from orchestrator.auth.wrong_keys import address_of
from orchestrator.gateway.errors import refusal
from orchestrator.gateway.services import GatewayServices
from workers.engine.request import RequestError

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class AccessControl:
    """ASGI middleware: 401 or 403 for a request whose key has not the scopes of its route, and 403
    for one that a foreign page sends to an endpoint without keys. Bodies stay where they are."""

    def __init__(self, app: ASGIApp, rules: "Rules", services: GatewayServices) -> None:
        self._app, self._rules, self._services = app, rules, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or hand it on with its caller and its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        request.state.id = request_id(request)
        try:
            await self._admit(request)
        except RequestError as error:
            await refusal(request, error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _admit(self, request: Request) -> None:
        if self._services.keys.open:
            _own_page(request, self._services)
        given = request.headers.get("authorization", "")
        for wants in self._rules.of(request.method, get_route_path(request.scope)):
            try:
                caller = self._services.keys.admit(given, wants.scope)
            except RequestError as error:
                if error.status == 401 and given:
                    await self._services.wrong_keys(address_of(request))
                raise
            if wants.counts:
                self._services.limiter.admit(caller, what=wants.counts)
            request.state.caller = caller


Rule = tuple[re.Pattern[str], Collection[str], tuple[Wants, ...]]
"""Path, methods and wants of a route."""


class Rules:
    """What the routes of an application want, by their `keys.wants`. A route that says nothing
    wants some key, unless it is named as open."""

    def __init__(self, app: FastAPI, open_paths: Collection[str]) -> None:
        self._app, self._open = app, open_paths

    def of(self, method: str, path: str) -> tuple[Wants, ...]:
        """What a request must bring; nothing where there is no such route."""
        for known, methods, wants in self._all:
            if method in methods and known.match(path):
                return wants
        return ()

    @cached_property
    def _all(self) -> list[Rule]:
        """In the order in which routes are tried."""
        return [
            (route.path_regex, route.methods or (), self._of(route))
            for route in iter_route_contexts(self._app.routes)
        ]

    def _of(self, route: Any) -> tuple[Wants, ...]:
        if route.path in self._open:
            return ()
        return tuple(_wanted(route.dependant)) or (Wants(None),)


def _wanted(dependant: Any) -> Iterator[Wants]:
    if isinstance(dependant.call, Wants):
        yield dependant.call
    for one in dependant.dependencies:
        yield from _wanted(one)


def _own_page(request: Request, services: GatewayServices) -> None:
    """Where no key is asked for, a browser must not be talked into asking: a foreign site's page
    reaches us under the site's name if that is made to point here (DNS rebinding)."""
    host, origin = request.headers.get("host"), request.headers.get("origin")
    if host and not _ours(f"//{host}", services):
        raise RequestError(
            f"the Host header names {host[:100]}, and without keys only this machine's own names "
            "are taken (serve.allowed_hosts adds others)",
            None,
            403,
            "foreign_host",
        )
    named = origin is None or "*" in services.cors_origins or origin in services.cors_origins
    if not named and not _ours(origin or "", services):
        raise RequestError(
            "pages of other sites may not call (serve.cors_origins names those that may)",
            None,
            403,
            "foreign_origin",
        )


def _ours(url: str, services: GatewayServices) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return is_loopback(host) or host in services.allowed_hosts


def request_id(request: Request) -> str:
    """What the log calls the request: Ray Serve's id, which the answer's X-Request-ID tells."""
    given = request.headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)
