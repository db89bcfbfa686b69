"""What the routing of one question comes to, in plain words, and no more than its numbers carry.

Shapes: T tokens, L layers, C experts of all layers side by side.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from orchestrator.router_health.layout import Array, Places, column
from orchestrator.router_health.token_kinds import Keeping, keepings
from workers.engine.routing.types import RequestRouting

EVEN, SOME = 0.95, 0.6
"""Entropy of the gates' shares over log E, mean of the layers: from the first on the work is nearly
even, and below the second few experts do most of it."""
FEW_TOKENS = 12
"""Below, nothing is said of kinds of tokens."""
TOLD = 2
"""Kinds of tokens that are told at most."""


@dataclass(frozen=True)
class Conclusion:
    """Sentences, and the layer that shows best what they say."""

    sentences: tuple[str, ...]
    layer: str


def conclude(routing: RequestRouting) -> Conclusion:
    """From the choices of each token in each layer; there must be a token and a layer."""
    places = Places.of(routing)
    shares_C = places.shares(column(routing, "weight"))
    busiest = int((shares_C * places.spread(places.sizes.astype(float))).argmax())
    kinds, columns = _kinds(routing, places)
    sentences = (_selection(routing, places), _spread(routing, places, shares_C, busiest), *kinds)
    return Conclusion(sentences, _expert(places, [*columns, busiest][0])[0])


def _selection(routing: RequestRouting, places: Places) -> str:
    """Whether anything is routed at all."""
    chosen = [_chosen(routing, at) for at in range(len(places.names))]
    layers, everything = len(chosen), [frozenset(range(count)) for count in places.sizes.tolist()]
    to_all = sum(sets == {whole} for sets, whole in zip(chosen, everything, strict=True))
    if to_all == layers:
        return (
            "The router selects nothing: every token goes to all experts of its layer, and only "
            "their weights differ."
        )
    if to_all:
        return (
            f"In {to_all} of {layers} layers the router selects nothing: every token goes to all "
            "experts there."
        )
    counts = _range(len(experts) for sets in chosen for experts in sets)
    told = f"Each token goes to {counts} of {_range(places.sizes.tolist())} experts in each layer"
    alike = sum(len(sets) == 1 for sets in chosen)
    if alike and len(routing.by_token) > 1:
        where = "every layer" if alike == layers else f"{alike} of {layers} layers"
        return f"{told}, but in {where} all tokens go to the same: the router parts nothing there."
    return f"{told}."


def _spread(routing: RequestRouting, places: Places, shares_C: Array, busiest: int) -> str:
    """How concentrated the work is."""
    logs_C = np.log(shares_C, out=np.zeros_like(shares_C), where=shares_C > 0)
    evenness_L = -places.sums(shares_C * logs_C) / np.log(np.maximum(places.sizes, 2))
    evenness = float(evenness_L.mean())
    verdict = "few experts do most of the work"
    if evenness >= SOME:
        verdict = "some experts do more than others"
    if evenness >= EVEN:
        verdict = "the experts share the work nearly evenly"
    layer, expert = _expert(places, busiest)
    even = 1 / dict(places.experts)[layer]
    unused = int((column(routing, "load") == 0).sum())
    rest = f"; {unused} of {len(shares_C)} experts got no token" if unused else ""
    return (
        f"In this text {verdict}: the busiest, expert {expert} of {layer}, has "
        f"{100 * shares_C[busiest]:.0f} % of the gates there (an even share is {100 * even:.0f} %)"
        f"{rest}."
    )


def _kinds(routing: RequestRouting, places: Places) -> tuple[list[str], list[int]]:
    """Which experts carry which kind of token, and the columns of these experts."""
    texts = routing.texts
    if len(texts) != len(routing.by_token):
        return [], []
    if len(texts) < FEW_TOKENS:
        return ["It is too short to say which kinds of words an expert takes."], []
    found = keepings(texts, _first(routing, places))[:TOLD]
    if not found:
        return [
            "No kind of token (words, numbers, punctuation) keeps to an expert more than chance "
            "explains."
        ], []
    return [_kept(one, places) for one in found], [one.column for one in found]


def _kept(one: Keeping, places: Places) -> str:
    layer, expert = _expert(places, one.column)
    verb = "keep" if one.kind.endswith("s") else "keeps"
    return (
        f"{one.kind.capitalize()} {verb} to expert {expert} of {layer}: {one.hits} of {one.of} "
        f"such tokens go there first, and {one.other_hits} of the {one.others} others."
    )


def _chosen(routing: RequestRouting, layer: int) -> set[frozenset[int]]:
    """The different sets of experts that tokens went to."""
    return {frozenset(choices[layer].experts) for choices in routing.by_token}


def _first(routing: RequestRouting, places: Places) -> Array:
    """1 where an expert is the first one of a token, [T, C]."""
    first_TC = np.zeros((len(routing.by_token), int(places.sizes.sum())))
    for row_C, choices in zip(first_TC, routing.by_token, strict=True):
        for start, choice in zip(places.starts.tolist(), choices, strict=True):
            row_C[[start + expert for expert in choice.experts[:1]]] = 1
    return first_TC


def _expert(places: Places, at: int) -> tuple[str, int]:
    """Layer and number of the expert of a column."""
    layer = int(np.searchsorted(places.starts, at, side="right")) - 1
    return places.names[layer], at - int(places.starts[layer])


def _range(numbers: Iterable[int]) -> str:
    known = sorted(numbers)
    low, high = known[0], known[-1]
    return str(low) if low == high else f"{low} to {high}"
