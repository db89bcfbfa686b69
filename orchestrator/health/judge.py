"""Holds a version's windows against its reference."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from orchestrator.health.drift import Distance, Limit, Reference, Source
from orchestrator.health.history import History
from orchestrator.health.places import Places
from orchestrator.health.report import Verdict
from workers.adapter.routing_sample import RoutingSample
from workers.spec import InputError

log = logging.getLogger(__name__)
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
    _found: dict[int, Distance] = field(default_factory=dict)
    """By the number of requests before the window."""

    def verdict(self) -> Verdict:
        """On all whole windows that are kept."""
        history, spec = self.history, self.history.spec
        limit = self._calibrated()
        if limit is None:
            return self._unknown(self._lacking())
        first = spec.reference_requests if limit.source == "served" else 0
        windows = [window for window in list(history.closed) if window.start >= first]
        found = {
            w.start: self._found.get(w.start) or limit.judge(w.vote_C / w.requests, spec.tolerance)
            for w in windows
        }
        self._found = found
        if not found:
            return self._unknown(f"no whole window of {spec.window} requests yet", limit.source)
        return _verdict(history, list(found.values()), limit.source)

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
                return reference
            self._looked = True
        first_NC = self.history.beginning()
        if wanted == "training" or first_NC is None:
            return None
        return Reference(places, first_NC, "served")

    def _unknown(self, why: str, source: Source | None = None) -> Verdict:
        history = self.history
        return Verdict(
            version=history.version,
            window=history.spec.window,
            state="unknown",
            reference=source,
            why=why,
        )

    def _lacking(self) -> str:
        spec = self.history.spec
        if spec.reference == "training":
            return "the version's manifest does not hold how single validation rows were routed"
        return f"no reference: the first {spec.reference_requests} requests make one"


def from_sample(sample: RoutingSample, places: Places) -> Reference | None:
    """The reference that training left; None where it is of other places. Raises InputError."""
    if sample.experts != dict(places.experts):
        return None
    sorted_places = Places(tuple(sorted(places.experts)))
    table_NC = np.array(sample.table(), dtype=np.float64).reshape(sample.rows, -1)
    columns = sorted_places.split(table_NC[table_NC.sum(1) > 0])
    counts_NC = np.concatenate([columns[name] for name in places.names], axis=1)
    return Reference(places, places.shares(counts_NC), "training") if len(counts_NC) else None


def _verdict(history: History, found: Sequence[Distance], source: Source) -> Verdict:
    last = found[-1]
    sustained = sum(1 for _ in takewhile(lambda one: one.score > 1, reversed(found)))
    enough = sustained >= history.spec.sustained
    says = "is routed unlike" if sustained else "is routed like"
    where = {"training": "the validation rows", "served": "the first requests served here"}
    return Verdict(
        version=history.version,
        window=history.spec.window,
        state="drifted" if enough else "suspect" if sustained else "steady",
        sustained=sustained,
        judged=len(found),
        score=last.score,
        layer=last.place,
        divergence=last.divergence,
        reference=source,
        why=f"the last window {says} {where[source]}: {last.score:.2f} of the limit",
    )
