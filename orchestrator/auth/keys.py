"""Who calls the gateway, and what they may do."""

import hashlib
import hmac
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from fastapi import Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from orchestrator.config.limits import Allowance
from workers.engine.request import RequestError

Scope = Literal["infer", "promote", "admin"]
Counts = Literal["asks", "manages"]
"""Which of a key's rates a request counts for: they are equal, and each is used up alone, so that
a page that shows how all is takes nothing from who asks."""
SCOPES: tuple[Scope, ...] = ("infer", "promote", "admin")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """Who sent a request: the id of a key, never the key."""

    id: str
    scopes: frozenset[Scope] = field(default_factory=frozenset)
    rate: Allowance | None = None
    """Requests that it may send."""
    quota: Allowance | None = None
    """Tokens that it may use, prompts and answers together."""

    def may(self, scope: Scope) -> bool:
        """Whether this scope is theirs; `admin` holds the others."""
        return scope in self.scopes or "admin" in self.scopes


ANONYMOUS = Caller("anonymous", frozenset({"infer"}))
"""Everybody, where no key is set: may ask, and may change nothing."""
OPEN = (None, "infer")
"""What needs no key where none is set."""
OPERATOR = Caller("operator", frozenset({"admin"}))
"""Who holds the key that the endpoint was started with."""


@dataclass(frozen=True)
class Key:
    """What is kept of a key: everything but the key."""

    hash: str
    caller: Caller
    note: str
    """Whom it is for, in its maker's words."""
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None

    def valid(self, now: datetime) -> bool:
        """Whether it opens anything."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def key_hash(key: str) -> str:
    """What is kept of a key. Keys are long and random: a plain hash cannot be searched."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


class KeyRing:
    """The keys that are accepted. Holds hashes only.

    Without an operator's key, and while there is no other, everybody may ask. Where the keys
    cannot be read, the last known ones go on; where they never could, nobody but the operator.
    `made_keys` tells a list whose last key was deleted from one that was lost.
    """

    def __init__(
        self, operator: str | None = None, read: Callable[[], Sequence[Key]] | None = None
    ) -> None:
        """`operator` is the `key_hash` of the operator's key. `read` returns all keys; it may
        block, and raise."""
        self._operator, self._read = operator, read
        self._keys: dict[str, Key] | None = None if read else {}
        self._readable = True

    @property
    def settled(self) -> bool:
        """Whether the keys were read once."""
        return self._keys is not None

    @property
    def open(self) -> bool:
        """Whether everybody may ask: there is no key."""
        return self._operator is None and self._keys == {}

    def refresh(self) -> None:
        """Read the keys. Blocks; does not raise."""
        if self._read is None:
            return
        try:
            keys = {key.hash: key for key in self._read()}
            self._keys, self._readable = keys, True
        except Exception as error:
            if self._readable:
                log.warning("the keys cannot be read, they stay as they are: %s", error)
            self._readable = False

    def admit(self, authorization: str, scope: Scope | None) -> Caller:
        """The caller of a request with this header; RequestError 401, 403 or 503 otherwise.

        Without a scope any valid key will do.
        """
        scheme, _, key = authorization.partition(" ")
        caller = self._caller(key.strip() if scheme.lower() == "bearer" else "")
        if caller is None and self._keys is None:
            raise RequestError("the keys cannot be read now", None, 503, "unavailable")
        return permitted(caller, scope)

    def _caller(self, given: str) -> Caller | None:
        if self.open:
            return ANONYMOUS
        hashed = key_hash(given)
        if self._operator and hmac.compare_digest(hashed, self._operator):
            return OPERATOR
        key = (self._keys or {}).get(hashed)
        if key is None or not hmac.compare_digest(hashed, key.hash):
            return None
        return key.caller if key.valid(datetime.now(UTC)) else None


def permitted(caller: Caller | None, scope: Scope | None) -> Caller:
    """The caller, who has this scope; RequestError 401 or 403 otherwise."""
    if caller is None or (caller is ANONYMOUS and scope not in OPEN):
        raise RequestError(
            "a valid key is required: Authorization: Bearer KEY", None, 401, "invalid_api_key"
        )
    if scope is not None and not caller.may(scope):
        raise RequestError(f"this needs a key of scope {scope}", None, 403, "insufficient_scope")
    return caller


@dataclass(frozen=True)
class Wants(SecurityBase):
    """A dependency of routes: says that they take keys of this scope, or any for None, and hands
    over who calls. `access.AccessControl` reads it off the routes, and asks for the key before
    FastAPI reads a body; FastAPI writes of each that it takes a key."""

    scope: Scope | None
    counts: Counts | None = None
    """The request is one of those that the key's rate of this kind allows."""
    model: HTTPBearer = field(default_factory=HTTPBearer, init=False, compare=False)
    scheme_name: str = field(default="key", init=False, compare=False)

    async def __call__(self, request: Request) -> Caller:
        """The caller whom the middleware has let in."""
        return permitted(getattr(request.state, "caller", None), self.scope)


def wants(scope: Scope | None, counts: Counts | None = None) -> Wants:
    """See `Wants`."""
    return Wants(scope, counts)
