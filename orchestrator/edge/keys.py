"""Who calls the gateway, and what they may do."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from fastapi import Request

from workers.engine.request import RequestError

Scope = Literal["infer", "promote", "admin"]
SCOPES: tuple[Scope, ...] = ("infer", "promote", "admin")


@dataclass(frozen=True)
class Caller:
    """Who sent a request: the id of a key, never the key."""

    id: str
    scopes: frozenset[Scope] = field(default_factory=frozenset)

    def may(self, scope: Scope) -> bool:
        """Whether this scope is theirs; `admin` holds the others."""
        return scope in self.scopes or "admin" in self.scopes


ANONYMOUS = Caller("anonymous", frozenset({"infer"}))
"""Everybody, where no key is set: may ask, and may change nothing."""
OPERATOR = Caller("operator", frozenset({"admin"}))
"""Who holds the key that the endpoint was started with."""


def key_hash(key: str) -> str:
    """What is kept of a key. Keys are long and random: a plain hash cannot be searched."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """The keys that are accepted. Holds hashes only."""

    def __init__(self, operator: str | None = None) -> None:
        """`operator` is the `key_hash` of the operator's key; None asks nobody for a key."""
        self._operator = operator

    def caller(self, given: str) -> Caller | None:
        """Who holds this key; None where it is nobody's."""
        if self._operator is None:
            return ANONYMOUS
        return OPERATOR if hmac.compare_digest(key_hash(given), self._operator) else None

    def admit(self, authorization: str, scope: Scope) -> Caller:
        """The caller of a request with this header; RequestError 401 or 403 otherwise."""
        scheme, _, key = authorization.partition(" ")
        caller = self.caller(key.strip() if scheme.lower() == "bearer" else "")
        if caller is None:
            raise RequestError(
                "a valid key is required: Authorization: Bearer KEY", None, 401, "invalid_api_key"
            )
        if not caller.may(scope):
            raise RequestError(
                f"this needs a key of scope {scope}", None, 403, "insufficient_scope"
            )
        return caller


def wants(scope: Scope) -> Callable[[Request], Caller]:
    """A dependency of routes: admits keys of this scope only, and says who calls."""

    def caller(request: Request) -> Caller:
        ring: KeyRing = request.app.state.keys
        return ring.admit(request.headers.get("authorization", ""), scope)

    return caller
