"""Colours of experts, told apart by colour-blind people too, with black text on them."""

from collections.abc import Sequence

PALETTE = (
    "#77aadd",
    "#ee8866",
    "#eedd88",
    "#ffaabb",
    "#99ddff",
    "#44bb99",
    "#bbcc33",
    "#aaaa00",
)
"""Paul Tol's "light" scheme, as in the gateway's page (`web/style.css`)."""


def places_in_palette(load: Sequence[float]) -> list[int | None]:
    """Each expert's place in the palette. Where there are more experts than colours, those with the
    largest load have one, and the others None: a colour never means two experts."""
    experts = range(len(load))
    seen = sorted(sorted(experts, key=lambda expert: -load[expert])[: len(PALETTE)])
    return [seen.index(expert) if expert in seen else None for expert in experts]
