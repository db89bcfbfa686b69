"""How many experts top_p takes. Shapes: T tokens, K slots."""

import pytest
import torch

from tests.workers.layers.routing.cases import DIM, EXPERTS, hidden, router
from workers.config.adapter import AdapterSpec
from workers.layers.routing.base import build_router


@pytest.mark.parametrize(("top_p", "slots"), [(1e-6, {1}), (0.5, {1, 2, 3}), (1.0, {EXPERTS})])
def test_top_p_takes_as_many_experts_as_it_needs(top_p: float, slots: set[int]) -> None:
    layer = router(routing="top_p", top_p=top_p).double()
    routing = layer(hidden(64))
    taken_TK = routing.expert_TK < EXPERTS
    assert set(taken_TK.sum(-1).tolist()) == slots
    assert not routing.gate_TK[~taken_TK].any()
    together_T = (routing.probs_TE.sort(descending=True).values * taken_TK).sum(-1)
    assert (together_T > min(top_p, 1 - 1e-9)).all()


def test_top_p_goes_on_where_its_sum_is_only_reached() -> None:
    layer = build_router(DIM, 2, AdapterSpec(num_experts=2, routing="top_p", top_p=0.5))
    assert layer(torch.randn(1, DIM)).gate_TK.tolist() == [[0.5, 0.5]], "weights are zero"
