"""The page of one answer's experts: its tokens in their experts' colours, and what that comes to.

The page holds everything it needs, runs no script and loads nothing; texts of models and people are
escaped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import templates
from orchestrator.router_health.attribution import Explained, TokenRow
from orchestrator.router_health.colors import PALETTE, places_in_palette
from orchestrator.router_health.conclusion import conclude

NEW_LINE = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"


@dataclass(frozen=True)
class Colored:
    """A token as one layer's view shows it."""

    text: str
    answer: bool
    kind: str
    """Its class of the page's style."""
    begins: int | None
    """Its first expert, where another one had the token before."""
    told: str
    """All of its experts with their gates."""


@dataclass(frozen=True)
class Legend:
    """An expert that tokens went to first."""

    expert: int
    kind: str
    tokens: int
    share: float
    """Of the layer's gates."""


@dataclass(frozen=True)
class View:
    """A layer: its tokens, and what the colours mean."""

    layer: str
    tokens: tuple[Colored, ...]
    legend: tuple[Legend, ...]
    others: tuple[int, ...]
    """Experts that no token went to first."""


def render(explained: Explained) -> str:
    """The page."""
    tokens = list(explained.tokens())
    return templates.render(
        Path(__file__).with_name("attribution.html.j2"),
        {"shown": _shown},
        it=explained,
        conclusion=conclude(explained.routing),
        palette=PALETTE,
        views=list(views(explained, tokens)),
        shares=explained.shares(),
        tokens=tokens,
    )


def views(explained: Explained, tokens: Sequence[TokenRow]) -> Iterator[View]:
    """Each layer's view."""
    shares = explained.shares()
    for layer in explained.routing.layers:
        firsts = [_first(token.gates[layer.layer]) for token in tokens]
        places = places_in_palette([firsts.count(expert) for expert in range(len(layer.load))])
        kinds = ["other" if place is None else f"c{place}" for place in places]
        legend = tuple(
            Legend(expert, kind, firsts.count(expert), shares[layer.layer][expert])
            for expert, kind in enumerate(kinds)
            if expert in firsts
        )
        others = tuple(expert for expert in range(len(kinds)) if expert not in firsts)
        yield View(layer.layer, tuple(_colored(layer.layer, tokens, firsts, kinds)), legend, others)


def _colored(
    layer: str, tokens: Sequence[TokenRow], firsts: Sequence[int | None], kinds: Sequence[str]
) -> Iterator[Colored]:
    before = [None, *firsts]
    for token, first, last in zip(tokens, firsts, before, strict=False):
        kind = "void" if first is None else kinds[first]
        begins = first if first != last else None
        text = token.text.replace("\n", f"{NEW_LINE}\n")
        yield Colored(text, token.answer, kind, begins, _told(layer, token.gates[layer]))


def _first(gates: Sequence[float]) -> int | None:
    """The expert with the largest gate; None where no expert took the token."""
    return gates.index(max(gates)) if any(gates) else None


def _told(layer: str, gates: Sequence[float]) -> str:
    order = sorted((-gate, expert) for expert, gate in enumerate(gates) if gate)
    lines = [f"expert {expert}: gate {-gate:.2f}" for gate, expert in order]
    return "\n".join((layer, *(lines or ["no expert had room"])))


def _shown(text: str) -> str:
    """A token so that its white space can be seen."""
    return text.replace(" ", "\N{OPEN BOX}").replace("\n", NEW_LINE)
