"""Holds a version's windows against its reference."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from orchestrator.router_health.drift import Distance, Limit, Reference, Source
from orchestrator.router_health.history import History
from orchestrator.router_health.layout import Array, Places
from orchestrator.router_health.report import HealthVerdict
from orchestrator.router_health.window import Votes
from workers.adapter.routing_sample import RoutingSample
from workers.config.base import InputError

log = logging.getLogger(__name__)
FEWEST = 30
"""Rows of a reference."""
Samples = Callable[[str], RoutingSample | None]
"""The routing of single validation rows by version id, as the registry's manifests hold it; raises
InputError where that cannot be read now."""


@dataclass
class Judge:
    """One version's reference, calibrated once, and what its windows were found to be."""

    history: History
    samples: Samples
    _limit: Limit | None = None
    _looked: bool = False
    """Whether the manifest was read."""

    def verdict(self) -> HealthVerdict:
        """On all whole windows that are kept."""
        spec, limit = self.history.spec, self._calibrated()
        if limit is None:
            return self._unknown(self._lacking())
        source = limit.reference.source
        latest = [limit.judge(share_C, spec.tolerance) for share_C in self._windows(limit)]
        if not latest:
            why = f"no whole window of {spec.window} requests to compare yet"
            return self._unknown(why, source)
        return _verdict(self.history, latest[::-1], source)

    def _windows(self, limit: Limit) -> Iterator[Array]:
        """Mean shares [C] of windows of enough requests that can be compared, the latest first."""
        spec, reference = self.history.spec, limit.reference
        first = spec.reference_requests if reference.source == "served" else 0
        taken: list[Votes] = []
        for tally in list(self.history.closed)[::-1]:
            if tally.start < first:
                return
            taken += [v for cached, v in tally.votes.items() if cached <= reference.prefix]
            requests = sum(votes.requests for votes in taken)
            if requests >= spec.window:
                yield sum((votes.share_C for votes in taken), np.zeros(1)) / requests
                taken = []

    def _calibrated(self) -> Limit | None:
        if self._limit is None:
            reference, spec = self._reference(), self.history.spec
            if reference is not None:
                self._limit = reference.limit(spec.window, spec.confidence)
        return self._limit

    def _reference(self) -> Reference | None:
        wanted, places = self.history.spec.reference, self.history.places
        if wanted != "served" and not self._looked:
            try:
                sample = self.samples(self.history.version)
                reference = sample and from_sample(sample, places)
            except InputError as error:
                log.warning("version %s: no reference for drift: %s", self.history.version, error)
                return None
            if reference:
                self.history.forget_first()
                return reference
            self._looked = True
        return None if wanted == "training" else self.history.beginning()

    def _unknown(self, why: str, source: Source | None = None) -> HealthVerdict:
        history = self.history
        return HealthVerdict(
            version=history.version,
            window=history.spec.window,
            state="unknown",
            reference=source,
            why=why,
        )

    def _lacking(self) -> str:
        spec = self.history.spec
        if spec.reference == "training":
            return f"the version's manifest does not tell how {FEWEST} validation rows were routed"
        return f"no reference: the first {spec.reference_requests} requests make one"


def from_sample(sample: RoutingSample, places: Places) -> Reference | None:
    """The reference that training left; None where it is of other places, or of too few rows to
    say how requests vary. Raises InputError."""
    if sample.experts != dict(places.experts) or sample.rows < FEWEST:
        return None
    sorted_places = Places(tuple(sorted(places.experts)))
    table_NC = np.array(sample.table(), dtype=np.float64).reshape(sample.rows, -1)
    columns = sorted_places.split(table_NC)
    counts_NC = np.concatenate([columns[name] for name in places.names], axis=1)
    return Reference(places, places.shares(counts_NC), "training", sample.prefix)


def _verdict(history: History, found: Sequence[Distance], source: Source) -> HealthVerdict:
    last = found[-1]
    sustained = sum(1 for _ in takewhile(lambda one: one.score > 1, reversed(found)))
    enough = sustained >= history.spec.sustained
    says = "is routed unlike" if sustained else "is routed like"
    where = {"training": "the validation rows", "served": "the first requests served here"}
    return HealthVerdict(
        version=history.version,
        window=history.spec.window,
        state="drifted" if enough else "suspect" if sustained else "steady",
        sustained=sustained,
        judged=len(found),
        score=last.score,
        layer=last.place,
        divergence=last.divergence,
        busiest=history.busiest(max(sustained, 1)),
        reference=source,
        why=f"the last window {says} {where[source]}: {last.score:.2f} of the limit",
    )
