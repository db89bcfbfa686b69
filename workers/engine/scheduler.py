"""Supplies transformers' generation thread, hands out its tokens, replaces it when it dies."""

import logging
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count

from transformers import PreTrainedModel
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus

from workers.engine.fairness import Ledger, gives_way
from workers.engine.hf_batching import (
    Manager,
    Turn,
    longest_sequence,
    most_rows,
    start_manager,
    stop_manager,
)
from workers.engine.prefix_cache import CacheNamespaces, Salt, fresh_salt
from workers.engine.protocol import Statistics
from workers.engine.request import Finish, Limits, RequestError
from workers.engine.room import Room
from workers.engine.sampler import Sampler
from workers.engine.sequence import TokenSequence, failed, stopped

log = logging.getLogger(__name__)
BLAMED, UNLUCKY = 2, 4
"""Deaths of the generation thread that end a request: as their likely cause, as a bystander."""


@dataclass(frozen=True)
class BatchRow:
    """One request's part of the batch that is about to be computed."""

    sequence: TokenSequence | None
    """None for a request that was dropped a moment ago."""
    tokens: int
    """Tokens of it in this batch."""
    length: int
    """Tokens of its sequence so far."""
    draws: bool
    """Whether it gets a new token."""


class GenerationLoop:
    """A queue in front of the library's generation thread, and a dispatcher behind it.

    Requests are admitted by their turn while their prompts and longest answers fit the cache
    together, so the library never has to throw one out halfway. Where a tenant that has less than
    its share finds no room, one that has more gives back its latest requests; these go on later
    from where they were. After the thread died, everything that ran is handed over again, prompt
    and generated tokens, one request after another until each has survived a step: so the one that
    kills the thread is found and fails alone.
    """

    def __init__(
        self, model: PreTrainedModel, limits: Limits, sampler: Sampler, stops: list[int]
    ) -> None:
        self._model, self._limits, self._sampler, self._stops = model, limits, sampler, stops
        self._namespaces = CacheNamespaces(limits.share_prefixes)
        self._lock = threading.RLock()
        self._ledger = Ledger()
        self._waiting: list[TokenSequence] = []
        self._running: dict[str, TokenSequence] = {}
        self._names = count()
        self._broken: Exception | None = None
        self._closing = threading.Event()
        self._manager = self._start()
        self.capacity = longest_sequence(self._manager)
        """Tokens that the cache holds for one request alone."""
        self._room = Room(self.capacity, most_rows(limits))
        self._retry = math.inf  # when a request that found no room may find it, though none ended
        self._dispatcher = threading.Thread(
            target=self._deliver_all, name="dispatcher", daemon=True
        )
        self._dispatcher.start()

    @property
    def healthy(self) -> bool:
        """Whether tokens are generated, or will be again in a moment."""
        return self._broken is None and not self._closing.is_set() and self._dispatcher.is_alive()

    def submit(self, sequence: TokenSequence) -> None:
        """Queue a checked request. Raises RequestError 429 where too many wait already, unless
        others have more of them there: then it meets the latest of those."""
        with self._lock:
            if not self.healthy:
                raise RequestError("the engine has stopped", status=503, code="engine_stopped")
            if len(self._waiting) >= self._limits.max_queued:
                full = RequestError("too many requests wait; try again", None, 429, "queue_full")
                other = gives_way(self._waiting, sequence)
                if other is None:
                    raise full
                self._waiting.remove(other)
                other.put(full)
            self._ledger.enter(sequence)
            self._waiting.append(sequence)
            self._admit()

    def drop(self, sequence: TokenSequence) -> None:
        """Forget a request, finished or not; its share of the cache goes to the next one."""
        with self._lock:
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            if self._running.get(sequence.name) is sequence:
                del self._running[sequence.name]
                self._manager.cancel_request(sequence.name)
            self._ended(sequence)
            self._admit()

    def batch(self) -> Iterator[BatchRow]:
        """What the generation thread is about to compute, in the order of the batch's tokens."""
        for future in self._manager.batch_processor.inputs_and_outputs.requests_in_batch:
            state = future.state
            length = len(state.initial_tokens) + len(state.generated_tokens)
            sequence = self._running.get(state.request_id)
            yield BatchRow(sequence, future.query_length, length, future.has_new_token)

    def statistics(self) -> Statistics:
        """What runs, what waits, and how much of the cache is promised."""
        with self._lock:
            promised = self._room.used(self._running.values())
            cache = self._limits.cache_tokens
            return Statistics(
                len(self._running), len(self._waiting), reserved=min(1.0, promised / cache)
            )

    def renew(self, slot: str) -> None:
        """The slot has other weights now: what was computed with the former ones is forgotten."""
        with self._lock:
            self._namespaces.renew(slot)

    def close(self) -> None:
        """Stop both threads; what still runs fails."""
        self._closing.set()
        self._dispatcher.join(timeout=60)  # first: it may be about to start another thread
        stop_manager(self._manager, timeout=60)
        self._fail_all("it was stopped")

    def _start(self) -> Manager:
        return start_manager(self._model, self._limits, self._sampler, self._salt, self._turn)

    def _salt(self, name: str) -> Salt:
        sequence = self._running.get(name)
        return sequence.salt if sequence else fresh_salt()

    def _salt_of(self, sequence: TokenSequence) -> Salt:
        if sequence.sampling.by_token:  # it has to see every token pass
            return fresh_salt()
        return self._namespaces.of(sequence.slot, sequence.asker.tenant)

    def _turn(self, name: str) -> Turn:
        sequence = self._running.get(name)
        return sequence.turn if sequence else ()

    def _admit(self) -> None:
        """Hand over waiting requests by their turn while there is room for all of their tokens."""
        self._retry = math.inf
        careful = any(g.deaths for g in chain(self._waiting, self._running.values()))
        while self._waiting:
            first = min(self._waiting, key=self._ledger.turn)
            if careful and not all(g.proven for g in self._running.values()):
                return
            running = list(self._running.values())
            if not self._room.fits(first, running):
                tenants = self._ledger.tenants.open
                givers = None if careful else self._room.givers(first, running, tenants)
                if givers is None:
                    self._retry = self._room.returns
                    return
                for giver in givers:
                    self._take_back(giver)
            first.hand_over(f"request-{next(self._names)}", self._salt_of(first))
            first.turn = self._ledger.turn(first)
            self._running[first.name] = first
            if not self._hand_over(first):
                del self._running[first.name]
                return  # the thread is dying; the dispatcher revives it and admits
            self._ledger.promise(first, first.size)
            self._waiting.remove(first)

    def _ended(self, sequence: TokenSequence) -> None:
        self._ledger.leave(sequence)
        self._room.ended(sequence)

    def _take_back(self, sequence: TokenSequence) -> None:
        """It waits again, with what it has generated."""
        del self._running[sequence.name]
        self._manager.cancel_request(sequence.name)
        self._ledger.promise(sequence, 0)
        self._waiting.append(sequence)

    def _hand_over(self, sequence: TokenSequence) -> bool:
        name = self._manager.add_request(
            [*sequence.prompt, *sequence.tokens],
            request_id=sequence.name,
            max_new_tokens=sequence.sampling.max_tokens - len(sequence.tokens),
            eos_token_id=[*self._stops, *sequence.sampling.ends],
            streaming=True,
        )
        return name is not None

    def _deliver_all(self) -> None:
        """What the dispatcher does. Were it to die unheard, all that wait would wait for ever."""
        try:
            self._deliver_until_closed()
        except Exception as error:
            log.exception("the engine has stopped")
            self._broken = error
            self._fail_all(error)

    def _deliver_until_closed(self) -> None:
        while not self._closing.is_set():
            output = self._manager.get_result(timeout=0.2)
            if output is not None:
                with self._lock:
                    self._deliver(output)
            elif not self._manager.is_running() and not self._closing.is_set():
                self._revive()
            if time.monotonic() >= self._retry:
                with self._lock:
                    self._admit()

    def _deliver(self, output: GenerationOutput) -> None:
        sequence = self._running.get(output.request_id)
        if sequence is None:
            return
        if output.status == RequestStatus.FAILED:
            if self._manager.background_thread_status.can_accept_new_requests() is None:
                sequence.put(failed(output.error))  # this request alone; else see _revive
            return
        if sequence.sampling_state.error is not None:
            if sequence.sampling_state.error.status >= 500:
                self._namespaces.renew(sequence.slot)  # nobody must read on from what went wrong
            sequence.put(sequence.sampling_state.error)
            self.drop(sequence)
            return
        before = sequence.proven, sequence.settled
        new = tuple(output.generated_tokens[len(sequence.tokens) - sequence.known :])
        finish: Finish | None = None
        if output.is_finished():
            ends = (*self._stops, *sequence.sampling.ends)
            finish = "stop" if new[-1:] and new[-1] in ends else "length"
        sequence.take(new, finish)
        if finish:
            del self._running[output.request_id]
            self._ended(sequence)
        if finish or before != (sequence.proven, sequence.settled):
            self._admit()

    def _revive(self) -> None:
        """Start another generation thread and hand everything over again. Starting takes long, and
        the event loop asks for the lock: it is free meanwhile, and what comes waits."""
        why = self._manager.background_thread_status.fatal_error
        log.error("the generation thread died and is replaced: %r", why)
        stop_manager(self._manager)
        with self._lock:
            ran = sorted(self._running.values(), key=lambda g: g.number)
            self._running.clear()
            unproven = [g for g in ran if not g.proven]
            suspects = unproven if len(unproven) == 1 else ran if len(ran) == 1 else []
            for sequence in ran:
                sequence.deaths += 1
                self._ledger.promise(sequence, 0)
                blamed = sequence in suspects
                if sequence.deaths >= (BLAMED if blamed else UNLUCKY):
                    sequence.put(failed(why) if blamed else stopped(why))
                else:
                    self._waiting.append(sequence)
        started = self._start()
        with self._lock:
            self._manager = started
            self._admit()

    def _fail_all(self, reason: object) -> None:
        with self._lock:
            for sequence in [*self._running.values(), *self._waiting]:
                sequence.put(stopped(reason))
            self._running.clear()
            self._waiting.clear()
