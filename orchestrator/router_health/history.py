"""What is kept of one version while it answers: the last windows, and the first requests."""

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from orchestrator.config.health import HealthSpec
from orchestrator.router_health.drift import Reference
from orchestrator.router_health.layout import Array, Places
from orchestrator.router_health.window import RoutingWindow
from workers.adapter.routing_sample import CACHE_PAGE
from workers.engine.routing.types import RequestRouting


@dataclass
class History:
    """The requests that one version answered. Grows no further than its specification says."""

    version: str
    places: Places
    spec: HealthSpec
    names: set[str] = field(default_factory=set)
    """Names that it answered to."""
    requests: int = 0
    """In all."""
    first: list[tuple[int, Array]] = field(default_factory=list)
    """Cached tokens and shares [C] of the first requests: a reference where training left none."""
    collects: bool = True
    """Whether the first requests are wanted."""
    closed: deque[RoutingWindow] = field(init=False)
    """The last whole windows, oldest first."""
    open: RoutingWindow = field(init=False)
    """The window that fills."""

    def __post_init__(self) -> None:
        self.closed = deque(maxlen=self.spec.windows)
        self.open = RoutingWindow(self.places)

    def add(self, routing: RequestRouting, read: int, user: str = "") -> None:
        """Count a request of a user that the engine has read `read` tokens of, some of them perhaps
        from its cache; one through other places is no request of this version."""
        if Places.of(routing) != self.places:
            return
        cached = max(round((read - routing.tokens) / CACHE_PAGE), 0) * CACHE_PAGE
        share_C = self.open.add(routing, cached)
        self.open.users[user] += 1
        if self.collects and len(self.first) < self.spec.reference_requests:
            self.first.append((cached, share_C))
        self.requests += 1
        if self.open.requests >= self.spec.window:
            self.closed.append(self.open)
            self.open = RoutingWindow(self.places, self.requests)

    def total(self) -> RoutingWindow:
        """All that is kept, as one."""
        whole = RoutingWindow(self.places)
        for window in (*self.closed, self.open):
            whole.include(window)
        return whole

    def busiest(self, windows: int) -> float:
        """The largest share that one user has of the requests in the last so many whole windows."""
        users: Counter[str] = Counter()
        for tally in list(self.closed)[-windows:]:
            users.update(tally.users)
        return max(users.values(), default=0) / max(users.total(), 1)

    def forget_first(self) -> None:
        """There is a better reference than the first requests."""
        self.collects, self.first = False, []

    def beginning(self) -> Reference | None:
        """The first requests, once there are enough: those that are like most of them."""
        if len(self.first) < self.spec.reference_requests:
            return None
        prefix = Counter(cached for cached, _ in self.first).most_common(1)[0][0]
        shares = [share_C for cached, share_C in self.first if cached <= prefix]
        return Reference(self.places, np.stack(shares), "served", prefix)
