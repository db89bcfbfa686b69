"""Where an answer's JSON schema comes from: bounded in size, tried out, compiled, remembered."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import TypeVar
from weakref import WeakValueDictionary

from llguidance import LLTokenizer
from transformers import PreTrainedTokenizerBase

from workers.engine.request import Limits, RequestError
from workers.engine.structured_output.grammar import Vocabulary, compiled
from workers.engine.structured_output.probe import Probe, SchemaVerdict
from workers.engine.structured_output.schema import Compiled, Schema, refused_schema
from workers.engine.structured_output.schema_size import check_size
from workers.engine.turns import Spending, Turns

T = TypeVar("T")
VERDICTS = 1024
"""Schemas whose verdict is remembered."""
KEPT, SMALL = 32, 2**21
"""Schemas that stay compiled when no answer needs them, and bytes that each of these may hold."""


class Schemas:
    """Makes them, for one tokenizer and one set of end tokens.

    What a schema takes to compile, its size does not tell, and nothing can stop a thread. So it is
    first tried out in another process, and compiled here only if that was within the limits. One
    thread does all of it, one schema at a time of each tenant, who is charged for it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        columns: int,
        stops: Sequence[int],
        limits: Limits,
    ) -> None:
        """`columns` of the logits."""
        self._vocabulary = Vocabulary(_written(tokenizer), columns, list(stops))
        self._limits = limits.schemas
        self._turns, self._spending = Turns(limits.max_queued), Spending()
        self._thread = ThreadPoolExecutor(1, "schemas")
        self._closing = threading.Event()
        self._probe = Probe(self._vocabulary, limits.schemas)
        self._verdicts: dict[bytes, SchemaVerdict] = {}
        self._kept: dict[bytes, Compiled] = {}
        self._live: WeakValueDictionary[bytes, Compiled] = WeakValueDictionary()
        self._tokenizer: LLTokenizer | None = None
        try:
            self._tokenizer = self._vocabulary.made()  # now: requests would wait for it
        except ValueError as error:  # said when somebody wants it
            self._unfit = str(error)

    async def schema(self, text: str, tenant: str = "") -> Schema:
        """For one answer. May take a second; RequestError says what is wrong with the schema, that
        the base's tokenizer is of a kind that cannot do it, or that the tenant asks too much."""
        try:
            check_size(text, self._limits)
        except ValueError as error:
            raise refused_schema(error) from None
        if self._tokenizer is None:
            raise RequestError(
                "answers by a schema are not possible with this base's tokenizer: " + self._unfit,
                "response_format",
            )
        name = hashlib.sha256(text.encode()).digest()
        return Schema(
            self._live.get(name) or await self._made(name, text, tenant), self._vocabulary.columns
        )

    def close(self) -> None:
        """Stop trying out."""
        self._closing.set()
        self._thread.shutdown(cancel_futures=True)
        self._probe.close()

    async def _made(self, name: bytes, text: str, tenant: str) -> Compiled:
        async with self._turns.of(tenant):
            if made := self._live.get(name):  # for the request before
                return made
            self._spending.check(tenant)
            left = threading.Event()
            loop = asyncio.get_running_loop()
            try:
                return await loop.run_in_executor(
                    self._thread, self._make, name, text, tenant, left
                )
            finally:
                left.set()

    def _make(self, name: bytes, text: str, tenant: str, left: threading.Event) -> Compiled:
        if made := self._live.get(name):  # for another tenant
            return made
        assert self._tokenizer is not None, "else it was refused before"
        verdict = self._verdict(name, text, tenant, left)
        begun = time.thread_time()
        try:
            made = Compiled(compiled(self._tokenizer, text, self._vocabulary.stops))
        except ValueError as error:
            raise refused_schema(error) from None
        finally:
            self._spending.charge(tenant, time.thread_time() - begun)
        self._live[name] = made
        if verdict.bytes <= SMALL:
            _remember(self._kept, name, made, KEPT)
        return made

    def _verdict(self, name: bytes, text: str, tenant: str, left: threading.Event) -> SchemaVerdict:
        verdict = self._verdicts.get(name)
        if verdict is None:
            verdict = self._probe.verdict(text, lambda: left.is_set() or self._closing.is_set())
            self._spending.charge(tenant, verdict.seconds)
        if not verdict.settled:
            raise RequestError(f"response_format: {verdict.refused}", None, 503, "unavailable")
        _remember(self._verdicts, name, verdict, VERDICTS)
        if verdict.refused:
            raise refused_schema(verdict.refused)
        return verdict


def _written(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return str(backend.to_str())


def _remember(known: dict[bytes, T], name: bytes, value: T, most: int) -> None:
    known[name] = value
    while len(known) > most:
        del known[next(iter(known))]
