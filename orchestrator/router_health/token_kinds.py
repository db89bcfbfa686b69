"""Which experts keep to one kind of token, told from chance.

Shapes: T tokens, U different texts, N kinds, C experts of all layers side by side.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.router_health.layout import Array

MARKER = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,20}\]")
"""How chat templates part their turns: `<|im_start|>`, `</s>`, `[INST]`."""
ROUNDS = 400
"""Times that chance shows what it can do."""
BY_CHANCE = 0.01
"""What chance does more often than this, at any expert of any layer, is not told."""
FEWEST = 4
"""Tokens of a kind, and of the others, that anything is said of."""


@dataclass(frozen=True)
class Keeping:
    """A kind of token that mostly goes to one expert first."""

    kind: str
    column: int
    """The expert, counted over all layers."""
    hits: int
    of: int
    """Tokens of the kind; `hits` of them went there first."""
    other_hits: int
    others: int

    @property
    def clear(self) -> bool:
        """Most of the kind go there, and the other tokens much more seldom."""
        if min(self.of, self.others) < FEWEST:
            return False
        share = self.hits / self.of
        return share >= 0.5 and share >= 1.5 * self.other_hits / self.others


def kind(text: str) -> str:
    """What a token is, by its characters."""
    shown = text.strip()
    if not shown:
        return "white space"
    if MARKER.fullmatch(shown):
        return "markers"
    if any(character.isalpha() for character in shown):
        return "words"
    return "numbers" if any(character.isdigit() for character in shown) else "punctuation"


def keepings(texts: Sequence[str], first_TC: Array) -> list[Keeping]:
    """The kinds that keep to an expert, the clearest first, each with its clearest expert.
    `first_TC` is 1 where an expert is the first one of a token.

    Chance deals the kinds anew to the different texts, not to the tokens: a comma that comes nine
    times goes nine times alike, and says no more of punctuation than one that comes once.
    """
    unique = sorted(set(texts))
    kinds = sorted({kind(text) for text in unique})
    if len(kinds) < 2:
        return []
    kind_U = np.array([kinds.index(kind(text)) for text in unique])
    text_T = np.array([unique.index(text) for text in texts])
    one_hot_NN, random = np.eye(len(kinds)), np.random.default_rng(0)
    dealt = (random.permutation(kind_U)[text_T] for _ in range(ROUNDS))
    by_chance = [_surprise(one_hot_NN[kind_T], first_TC).max() for kind_T in dealt]
    limit = float(np.quantile(by_chance, 1 - BY_CHANCE))
    kind_TN = one_hot_NN[kind_U[text_T]]
    surprise_NC = _surprise(kind_TN, first_TC)
    found = [
        _keeping(kinds[at], int(surprise_NC[at].argmax()), kind_TN[:, at], first_TC)
        for at in np.argsort(-surprise_NC.max(axis=1))
        if surprise_NC[at].max() > limit
    ]
    return [one for one in found if one.clear]


def _surprise(kind_TN: Array, first_TC: Array) -> Array:
    """By how many deviations of a random draw more of a kind went to an expert than its part."""
    tokens, size_N1 = len(kind_TN), kind_TN.sum(axis=0)[:, None]
    share_C = first_TC.mean(axis=0)
    spare_N1 = size_N1 * (tokens - size_N1) / max(tokens - 1, 1)
    deviation_NC = np.sqrt(spare_N1 * share_C * (1 - share_C))
    more_NC = kind_TN.T @ first_TC - size_N1 * share_C
    surprise_NC: Array = np.divide(
        more_NC, deviation_NC, out=np.zeros_like(more_NC), where=deviation_NC > 0
    )
    return surprise_NC


def _keeping(kind: str, column: int, is_kind_T: Array, first_TC: Array) -> Keeping:
    hits, all_hits = int(is_kind_T @ first_TC[:, column]), int(first_TC[:, column].sum())
    of = int(is_kind_T.sum())
    return Keeping(kind, column, hits, of, all_hits - hits, len(is_kind_T) - of)
