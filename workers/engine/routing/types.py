"""Which experts a request's tokens went to: what attribution, health and drift are made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerRouting:
    """What one request's tokens chose in one routed place."""

    layer: str
    """The place, as the manifest's `expert_load` names it."""
    load: tuple[int, ...]
    """Slots that went to each expert, over the tokens; void slots are left out."""
    weight: tuple[float, ...]
    """Sum of the gates that each expert got."""
    entropy: float
    """Sum over tokens of the router's entropy divided by log E: 0 … tokens."""
    margin: float
    """Sum over tokens of the first expert's probability less the second's."""


@dataclass(frozen=True)
class TokenRouting:
    """One token's choice in one place: experts and gates, most probable first, no voids."""

    experts: tuple[int, ...]
    gates: tuple[float, ...]


@dataclass(frozen=True)
class RequestRouting:
    """One request's routing, prompt and answer."""

    tokens: int
    """Tokens that passed through the routers: each of the prompt and the answer once, but for the
    last one, which is drawn and never read. Where another replica or a new generation thread takes
    an answer up again, what the former one counted is gone with it, and the tokens count as they
    pass there. Tokens of a prefix that was in the cache already do not pass, and are not counted;
    a request that asks for `by_token` has its own cache. An answer that a stop string ends also
    counts what was read before that was seen: a token or two, more on a busy machine."""
    layers: tuple[LayerRouting, ...]
    by_token: tuple[tuple[TokenRouting, ...], ...] = ()
    """For each token of prompt and answer in order, its choice in each of `layers`; only where a
    request asked for it."""
    texts: tuple[str, ...] = ()
    """The text of each of these tokens."""
