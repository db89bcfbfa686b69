"""How many experts a tile of tokens meets: the work of the fused kernels grows with them.

Tokens lie sorted by their first two experts, so these are few in a tile; experts of further slots
lie at random, and nearly all come. For each slot and each expert that comes, a program multiplies
its whole tile. The eager path's pairs are sorted by expert, and each is multiplied once.
"""

import torch

from workers.layers.kernels.launch import padded, token_rows

MOST = 8
"""Experts of a slot that a tile may meet for the fused kernels to be taken. Derived from bytes and
instructions on an H100, not timed: a visit takes a number of the tile about 1 ps (a dot of rank 16,
a select, its operands from the second cache), reading and writing it once 2 ps, and a pair on the
eager path, which moves about 50 bytes of each number, 14 ps. Both are even at about 12; a third is
left for what the kernels do not overlap."""
LITTLE = 10**8
"""Numbers times visits that take less than the eager path's launches, some 50 of 5 us."""


def expected_visits(tokens: int, experts: int, top_k: int, rows: int) -> float:
    """Visits of a tile of so many tokens, over all slots, where a router has no favourites; at most
    a third more than there are."""
    rows, beside = min(rows, tokens), min(rows, tokens) - 1
    at_random = experts * (1 - (1 - 1 / experts) ** rows)
    first, second = (1 + beside * experts**power / tokens for power in (1, 2))
    in_order = [min(one, at_random) for one in (first, second)]
    return sum(in_order[:top_k]) + at_random * max(top_k - 2, 0)


def is_little_work(inner_TF: torch.Tensor, experts: int, rank: int, top_k: int) -> bool:
    """Whether tiles meet so few experts that the eager path is not quicker."""
    tokens = len(inner_TF)
    if not tokens:
        return True
    rows = token_rows(inner_TF.dtype, top_k * padded(rank))
    visits = expected_visits(tokens, experts, top_k, rows)
    return visits <= MOST * top_k or inner_TF.numel() * visits <= LITTLE
