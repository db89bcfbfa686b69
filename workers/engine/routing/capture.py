"""Who chose which experts: from what routers tell in forward passes to each request's tally.

A pass only keeps what the routers made anyway; the sums are taken for many passes at once, when a
request ends or enough has gathered.
"""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

from workers.engine.routing.aggregate import Layout, Member, PassDecisions, TokenSpan, share_out
from workers.engine.routing.tally import Places, RoutingTally
from workers.engine.routing.types import RequestRouting
from workers.injection.adapter import Adapter
from workers.layers.routing.base import Router, RoutingDecision

GATHERED = 2048
"""Tokens whose decisions are kept before they are summed up: some megabytes for 30 places."""


@dataclass(frozen=True)
class _Pass:
    spans: Sequence[TokenSpan]
    notes: list[tuple[str, RoutingDecision]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(span.tokens for span in self.spans)


class RoutingCapture:
    """Listens to the routers of every adapter on a model while an engine runs it."""

    def __init__(self) -> None:
        self._slots: WeakKeyDictionary[Router, str] = WeakKeyDictionary()
        self._places: dict[str, Places] = {}
        self._running: _Pass | None = None
        self._passes: list[_Pass] = []
        self._lock = threading.Lock()

    def watch(self, slot: str, adapter: Adapter) -> None:
        """Listen to an adapter's routers, for as long as it lives."""
        for place, router in adapter.routers.items():
            self._slots[router] = slot
            router.observer = partial(self._note, place)
        alive = set(self._slots.values())  # routers of adapters that were taken off are gone
        kept = {name: places for name, places in self._places.items() if name in alive}
        self._places = {**kept, slot: tuple(adapter.routers)}

    def begin(self, rows: Sequence[tuple[RoutingTally | None, int]]) -> None:
        """A pass begins, with so many tokens of each tally, in this order. None: nobody's, or the
        bare base's."""
        spans = [TokenSpan(tally, tokens, tally.tokens if tally else 0) for tally, tokens in rows]
        self._running = _Pass(spans)

    def end(self, passed: bool) -> None:
        """The pass is over; one that failed counts for nothing."""
        ran, self._running = self._running, None
        if ran is None or not passed:
            return
        with self._lock:
            for tally, tokens, _ in ran.spans:
                if tally is not None:
                    tally.tokens += tokens
            if ran.notes:
                self._passes.append(ran)
            if sum(one.tokens for one in self._passes) > GATHERED:
                self._sum_up()

    def routing(self, tally: RoutingTally) -> RequestRouting | None:
        """All that a request's tokens chose; None where its adapter has no router."""
        places = self._places.get(tally.slot)
        if not places:
            return None
        with self._lock:
            self._sum_up()
            return tally.summary(places)

    def _note(self, place: str, decision: RoutingDecision) -> None:
        if self._running is not None:
            self._running.notes.append((place, decision))

    def _sum_up(self) -> None:
        """Take the sums of all passes, of the same adapters at the same places together."""
        groups: dict[tuple[Layout, Places], list[PassDecisions]] = defaultdict(list)
        for one in self._passes:
            layouts: dict[Layout, list[tuple[str, RoutingDecision]]] = defaultdict(list)
            for place, decision in one.notes:
                layouts[self._layout(decision)].append((place, decision))
            for layout, notes in layouts.items():
                spans = [span for span in one.spans if layout.has(span.tally)]
                places = tuple(place for place, _ in notes)
                groups[layout, places].append(
                    PassDecisions(spans, [decision for _, decision in notes])
                )
        for (layout, places), parts in groups.items():
            share_out(layout, places, parts)
        self._passes.clear()

    def _layout(self, decision: RoutingDecision) -> Layout:
        members, first = [], 0
        for router in decision.routers:
            if router is not None:
                experts = len(router.weight)
                members.append(Member(self._slots[router], first, experts, router.slots))
                first += experts
        shape = decision.logits_TN.shape[1], decision.gate_TK.shape[1]
        return Layout(tuple(members), None in decision.routers, *shape)
