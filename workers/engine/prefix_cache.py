"""Shared prompts: keys and values that one request computed serve the next one of the same slot
and tenant.

They depend on the adapter, while transformers knows a cache page by its tokens alone: there the
bare base and every adapter would read each other's. And an answer that comes sooner tells a tenant
that somebody asked the same. So the first page of every sequence, which all later ones build on, is
known under other numbers for each slot and tenant.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

PAGE = 32
"""Tokens of a cache page: what is shared, and what a request's share is rounded up to."""
REMEMBERED = 1024
"""Slots by tenants at most; of others, who have long been away, what was computed is forgotten."""
Salt = tuple[int, ...]
"""A number of 31 bits for each token of a page."""


def fresh_salt() -> Salt:
    """One that nobody has."""
    return tuple(secrets.randbits(31) for _ in range(PAGE))


class CacheNamespaces:
    """Which requests share pages: those of one tenant and slot, as long as it stays what it was."""

    def __init__(self, shared: bool = False) -> None:
        """`shared`: whether all tenants are one."""
        self._shared = shared
        self._known: dict[tuple[str | None, str], Salt] = {}

    def of(self, slot: str | None, tenant: str) -> Salt:
        """The slot's, for a tenant; None is the bare base."""
        key = slot, "" if self._shared else tenant
        salt = self._known.pop(key, None) or fresh_salt()
        self._known[key] = salt  # the last one now
        while len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return salt

    def renew(self, slot: str | None) -> None:
        """Forget what was computed so far: it may have been wrong, or by other weights."""
        self._known = {key: salt for key, salt in self._known.items() if key[0] != slot}


class SlotCache(PagedAttentionCache):  # type: ignore[misc]
    """The library's paged cache, with pages shared by salt."""

    def __init__(self, salt_of: Callable[[str], Salt], **options: Any) -> None:
        """`salt_of` gives the salt of a request by its name; the rest as in the library."""
        super().__init__(**options)
        self._salt_of = salt_of

    def search_prefix_match(self, request_id: str, prompt_ids: list[int]) -> int:
        """Tokens at the beginning of a prompt that need not be computed."""
        return int(super().search_prefix_match(request_id, self._salted(request_id, prompt_ids)))

    def mark_complete_blocks(self, state: RequestState, complete_blocks: dict[str, int]) -> None:
        """Offer the pages that a pass has filled to later requests."""
        if not complete_blocks or state.status == RequestStatus.FINISHED:
            return
        tokens = self._salted(state.request_id, state.initial_tokens + state.generated_tokens)
        for name, blocks in complete_blocks.items():
            self.cache_allocators[name].mark_complete_blocks(state.request_id, tokens, blocks)

    def can_store_request_tokens(
        self, state: RequestState, request_len: int, dry_run: bool = False
    ) -> bool:
        """Whether there is room; pages that wait for a later request make it."""
        fits = super().can_store_request_tokens(state, request_len, dry_run)
        if not fits and self.evict_cached_blocks():
            fits = super().can_store_request_tokens(state, request_len, dry_run)
        return bool(fits)

    def _salted(self, request_id: str, tokens: Sequence[int]) -> list[int]:
        salted = (a ^ b for a, b in zip(tokens, self._salt_of(request_id), strict=False))
        return [*salted, *tokens[PAGE:]]
