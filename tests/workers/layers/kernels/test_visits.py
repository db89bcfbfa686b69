"""How many experts a tile meets: as counted, and what that lets the fused kernels take."""

import pytest
import torch

from workers.layers.kernels.mixture import _token_order
from workers.layers.kernels.visits import MOST, expected_visits, is_little_work

MEASURED = {(8, 2, 64): 2.5, (8, 4, 64): 15, (32, 2, 64): 10, (64, 2, 64): 29, (64, 8, 32): 167}
"""Experts, slots and tokens of a tile; visits of one among 8192 tokens, as they were counted."""


def counted(tokens: int, experts: int, top_k: int, rows: int) -> float:
    generator = torch.Generator().manual_seed(0)
    expert_TK = torch.rand(tokens, experts, generator=generator).topk(top_k).indices
    tiles = expert_TK[_token_order(expert_TK, experts)].split(rows)
    return sum(len(slot.unique()) for tile in tiles for slot in tile.T) / len(tiles)


@pytest.mark.parametrize(("experts", "top_k", "rows"), MEASURED)
def test_what_is_expected_is_what_is_counted(experts: int, top_k: int, rows: int) -> None:
    found = counted(8192, experts, top_k, rows)
    assert found == pytest.approx(MEASURED[experts, top_k, rows], rel=0.03)
    assert found <= expected_visits(8192, experts, top_k, rows) <= 1.35 * found


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "rank", "taken"),
    [
        (8192, 8, 2, 16, True),
        (8192, 8, 8, 64, True),
        (8192, 32, 2, 16, True),
        (8192, 64, 1, 16, True),
        (4096, 32, 2, 16, False),
        (8192, 64, 2, 16, False),
        (8192, 64, 8, 16, False),
        (128, 32, 2, 16, True),
        (0, 64, 8, 16, True),
    ],
)
def test_many_experts_in_a_tile_take_the_eager_path_unless_it_is_all_launches(
    tokens: int, experts: int, top_k: int, rank: int, taken: bool
) -> None:
    inner_TF = torch.empty(1, 1, dtype=torch.bfloat16).expand(tokens, 14336)
    assert is_little_work(inner_TF, experts, rank, top_k) == taken


def test_a_tile_meets_no_more_than_there_are() -> None:
    assert expected_visits(1, 8, 2, 64) == pytest.approx(2)
    assert expected_visits(10**6, MOST, 8, 64) <= 8 * MOST
