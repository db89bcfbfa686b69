"""Which versions the requests for one name go to, and which of them each request goes to."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from workers.engine.request import AdapterRef

Role = Literal["served", "canary", "pinned"]


@dataclass(frozen=True)
class Served:
    """One exact model: the base, or a version under a name."""

    id: str
    """What responses call it, such as `home@3f9a1b2c3d4e`."""
    adapter: AdapterRef | None
    name: str | None = None
    """The registry's name; None for the base asked for by its own id."""

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: the version's id alone."""
        return self.adapter.slot if self.adapter else "base"


@dataclass(frozen=True)
class RequestRoute:
    """Where one request goes."""

    served: Served
    """Answers the request."""
    role: Role = "served"
    """`canary` where the request is in a canary's share; `pinned` where it names the version."""
    shadow: Served | None = None
    """Answers it too, to be compared; that answer is never returned."""


@dataclass(frozen=True)
class TrafficSplit:
    """What stands behind a name: all of it is loaded on every replica."""

    champion: Served
    canary: Served | None = None
    share: float = 0.0
    """Of the users, 0 … 1, that the canary answers."""
    shadow: Served | None = None

    def route(self, sticky: str) -> RequestRoute:
        """The same user is answered by the same version for as long as the share does not shrink;
        a growing share keeps those that were in."""
        canary = self.canary
        if canary is None or _place(canary, sticky) >= self.share:
            return RequestRoute(self.champion, "served", self.shadow)
        return RequestRoute(canary, "canary", self.shadow)


def _place(canary: Served, sticky: str) -> float:
    """Where a user lies in [0, 1): as good as drawn, anew for each canary, so that not always the
    same users meet what is new."""
    drawn = hashlib.sha256(f"{canary.id}\0{sticky}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(drawn[:6]) / 2**48
