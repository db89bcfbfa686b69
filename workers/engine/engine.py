"""Generation for many requests at once, each with its own adapter: what a replica runs."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import count
from typing import Any

from torch import nn

from workers.config.model import ModelSpec
from workers.data.text_encoder import TextEncoder
from workers.engine.adapter_slots import SlotStore
from workers.engine.protocol import Statistics
from workers.engine.recent_adapters import RecentAdapters
from workers.engine.request import (
    NOBODY,
    AdapterRef,
    Asker,
    Finish,
    Limits,
    Piece,
    RequestError,
    Sampling,
)
from workers.engine.routing.capture import RoutingCapture
from workers.engine.sampler import GREEDY, Sampler, SampleRequest, SamplingState
from workers.engine.scheduler import GenerationLoop
from workers.engine.sequence import TokenSequence
from workers.engine.structured_output.schemas import Schemas
from workers.engine.timing import PassClock, Passing
from workers.injection.adapter import Adapter
from workers.injection.inject import row_map
from workers.models.attention import check_attention
from workers.models.base import Base, load_base


class ContinuousEngine:
    """transformers' continuous batching over one base model with the trained layers injected.

    Every forward pass is one row of tokens [1, T] of all its requests. A hook in front of it tells
    the injected layers which tokens belong to which slot, and the sampler how each request draws.
    """

    def __init__(self, base: Base, limits: Limits) -> None:
        """Raises InputError where this model cannot be batched, or its cache not be had."""
        check_attention(base.model)
        self.limits = limits
        self.tokenizer, self.device = base.tokenizer, base.model.device.type
        self._model = base.model
        self._vocabulary = base.model.get_input_embeddings().num_embeddings
        self._stops = stop_ids(base)
        self._schemas = Schemas(base.tokenizer, self._vocabulary, self._stops, limits)
        self._clock = PassClock()
        self._sampler = Sampler(self._clock.stop)
        self._model_lock = threading.RLock()  # a forward pass, or a change of the model's modules
        self._capture = RoutingCapture()
        self._recent = RecentAdapters()
        self._rows = row_map(base.model)
        self._slots = SlotStore(
            base.model, self._rows, limits.max_adapters, self._model_lock, self._loaded
        )
        self._numbers = count()
        self._running: dict[str, TokenSequence] = {}
        self._computed = (0, 0, 0)
        """Forward passes, and the requests and tokens that were in them."""
        self._hooks = (
            base.model.register_forward_pre_hook(self._before_forward),
            base.model.register_forward_hook(self._after_forward, always_call=True),
        )
        self._loop = GenerationLoop(base.model, limits, self._sampler, self._stops)
        context = getattr(base.model.config, "max_position_embeddings", None)
        self.max_length = min(context or self._loop.capacity, self._loop.capacity)

    @property
    def healthy(self) -> bool:
        """See `protocol.Engine`."""
        return self._loop.healthy

    def load(self, adapter: AdapterRef) -> None:
        """See `protocol.Engine`. Requests that run go on meanwhile."""
        self._slots.load(adapter)

    def unload(self, slot: str) -> None:
        """See `protocol.Engine`."""
        self._slots.unload(slot)

    def keep(self, slots: Collection[str]) -> None:
        """See `protocol.Engine`."""
        self._slots.keep(slots)

    def loaded(self) -> tuple[str, ...]:
        """See `protocol.Engine`."""
        return self._slots.held

    def statistics(self) -> Statistics:
        """See `protocol.Engine`."""
        passes, rows, tokens = self._computed
        held, known = len(self._slots.held), self._loop.statistics()
        return replace(known, adapters=held, passes=passes, rows=rows, tokens=tokens)

    def check(
        self, prompt: Sequence[int], sampling: Sampling, generated: Sequence[int] = ()
    ) -> None:
        """Refuse here what would end the generation thread, and with it everyone's requests."""
        if not prompt:
            raise RequestError("the prompt is empty", "prompt")
        if sampling.max_tokens > self.limits.max_new_tokens:
            raise RequestError(
                f"max_tokens is {sampling.max_tokens}, but at most {self.limits.max_new_tokens}",
                "max_tokens",
            )
        if len(prompt) + sampling.max_tokens > self.max_length:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens and max_tokens is {sampling.max_tokens}, but "
                f"together they may have {self.max_length}",
                "max_tokens",
                code="context_length_exceeded",
            )
        bad = next((i for i in (*prompt, *generated) if not 0 <= i < self._vocabulary), None)
        if bad is not None:
            raise RequestError(f"token id {bad} is not in 0 … {self._vocabulary - 1}", "prompt")

    async def generate(  # noqa: PLR0913, PLR0917 -- see `protocol.Engine`
        self,
        prompt: Sequence[int],
        adapter: AdapterRef | None,
        sampling: Sampling,
        generated: Sequence[int] = (),
        asker: Asker = NOBODY,
        request_id: str = "",
    ) -> AsyncGenerator[Piece]:
        """See `protocol.Engine`."""
        self.check(prompt, sampling, generated)
        if finish := self._ended(sampling, generated):
            yield Piece((), finish)
            return
        schema = None
        if sampling.json_schema is not None:
            schema = await self._schemas.schema(sampling.json_schema, asker.tenant)
        # Pinned here and not in the other thread: a cancelled await would leave it pinned.
        while adapter is not None and not self._slots.pin_held(adapter.slot):
            await asyncio.to_thread(self._slots.load, adapter)
        slot = adapter.slot if adapter else None
        sequence = TokenSequence(
            number=next(self._numbers),
            prompt=tuple(prompt),
            slot=slot,
            asker=asker,
            sampling=sampling,
            tokens=list(generated),
            schema=schema,
            seconds=self.limits.request_seconds,
        )
        try:
            self._running[request_id] = sequence
            self._loop.submit(sequence)
            async with aclosing(sequence.pieces()) as pieces:
                async for piece in pieces:
                    yield await self._told(piece, sequence)
        finally:
            self._running.pop(request_id, None)
            self._loop.drop(sequence)
            if slot is not None:
                self._slots.unpin(slot)

    def abort(self, request_id: str) -> None:
        """See `protocol.Engine`."""
        if request_id and (sequence := self._running.get(request_id)):
            sequence.abort()

    def close(self) -> None:
        """See `protocol.Engine`. The model keeps the adapters that were loaded."""
        self._loop.close()
        self._slots.close()
        self._schemas.close()
        for hook in self._hooks:
            hook.remove()

    def _loaded(self, slot: str, adapter: Adapter) -> None:
        self._capture.watch(slot, adapter)
        self._loop.renew(slot)

    async def _told(self, piece: Piece, sequence: TokenSequence) -> Piece:
        """The last piece tells the routing."""
        if piece.finish is None or sequence.tally is None:
            return piece
        routing = await asyncio.to_thread(self._capture.routing, sequence.tally)
        return replace(piece, routing=routing)

    def _ended(self, sampling: Sampling, generated: Sequence[int]) -> Finish | None:
        """Whether an answer that comes from another replica was complete already."""
        if generated and generated[-1] in (*self._stops, *sampling.ends):
            return "stop"
        return "length" if len(generated) >= sampling.max_tokens else None

    def _before_forward(self, *_: Any) -> None:
        self._model_lock.acquire()
        rows = list(self._loop.batch())
        passes, seen, tokens = self._computed
        new = sum(row.tokens for row in rows)
        self._computed = (passes + 1, seen + len(rows), tokens + new)
        for row in rows:
            if row.sequence:
                row.sequence.computed += row.tokens
        slots = [row.sequence.slot if row.sequence else None for row in rows]
        self._sampler.requests = [
            SampleRequest(
                row.sequence.sampling_state if row.sequence else SamplingState(GREEDY), row.length
            )
            for row in rows
            if row.draws
        ]
        by_token = [slot for slot, row in zip(slots, rows, strict=True) for _ in range(row.tokens)]
        drawn = [slot for slot, row in zip(slots, rows, strict=True) if row.draws]
        self._rows.set(by_token, self._recent.of(by_token, self._rows.slots), drawn)
        self._capture.begin(
            [(row.sequence.tally if row.sequence else None, row.tokens) for row in rows]
        )
        self._clock.start(
            Passing(row.sequence.timer, row.sequence.slot, row.tokens, row.draws)
            for row in rows
            if row.sequence
        )

    def _after_forward(self, _model: nn.Module, _: Any, output: Any) -> None:
        if output is not None and self._model.device.type == "cpu":
            self._clock.stop()  # a GPU goes on; there the sampler is the first to wait for it
        self._capture.end(passed=output is not None)
        self._rows.clear()
        self._model_lock.release()


def continuous(model: ModelSpec, limits: Limits) -> ContinuousEngine:
    """The entry of `workers.config.engines.ENGINES`."""
    return ContinuousEngine(load_base(model), limits)


def stop_ids(base: Base) -> list[int]:
    """Tokens that end an answer: of the text, of the turn, and those the model itself names."""
    ids = base.model.generation_config.eos_token_id
    found = {*(ids if isinstance(ids, list) else [ids]), base.tokenizer.eos_token_id}
    if base.tokenizer.chat_template:
        found.update(TextEncoder(base.tokenizer).stops(chat=True))
    return sorted(found - {None})
