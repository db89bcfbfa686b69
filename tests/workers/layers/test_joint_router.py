"""The joint router sends every token where its own router does."""

import pytest
import torch

from workers.config.adapter import AdapterSpec
from workers.layers.joint_router import join_routers
from workers.layers.routing.base import Router, build_router


def router(seed: int, **fields: object) -> Router:
    spec = AdapterSpec.model_validate({"router_init_std": 1.0, **fields})
    one = build_router(6, spec.layer_experts, spec).double().eval()
    one.reset_parameters(torch.Generator().manual_seed(seed))
    return one


@pytest.mark.parametrize("gates", ["renormalised", "equal"])
def test_one_router_alone(gates: str) -> None:
    alone = router(0, num_experts=5, top_k=2, router_temperature=0.5, gates=gates)
    hidden_TD = torch.randn(7, 6, dtype=torch.float64)
    joint = join_routers([alone])
    assert joint is not None
    assignments, routing = joint.route(hidden_TD), alone(hidden_TD)
    assert torch.equal(assignments.expert_TK, routing.expert_TK)
    torch.testing.assert_close(assignments.gate_TK, routing.gate_TK)
    assert not assignments.apart
    assert assignments.num_experts == 5


@pytest.mark.parametrize("gates", ["renormalised", "equal"])
def test_each_token_has_the_experts_of_its_own_adapter(gates: str) -> None:
    torch.manual_seed(0)
    wide = router(1, num_experts=4, top_k=3, gates=gates)
    members = [router(0, num_experts=3, top_k=1), None, wide, None]
    first = [0, 0, 3, 0]
    joint = join_routers(members)
    assert joint is not None
    hidden_TD = torch.randn(40, 6, dtype=torch.float64)
    member_T = torch.randint(0, 4, (40,))
    assignments = joint.route(hidden_TD, member_T)
    assert assignments.apart
    void = assignments.num_experts - 1
    assert void == 7
    for token, member in enumerate(member_T.tolist()):
        own = members[member]
        gate_K = assignments.gate_TK[token]
        if own is None:
            assert gate_K.tolist() == [1, 0, 0]
            assert assignments.expert_TK[token].tolist() == [void] * 3, "a bare row has no expert"
            continue
        routing = own(hidden_TD[token : token + 1])
        slots = routing.expert_TK.shape[1]
        wanted = (routing.expert_TK[0] + first[member]).tolist()
        assert assignments.expert_TK[token, :slots].tolist() == wanted
        torch.testing.assert_close(gate_K[:slots], routing.gate_TK[0])
        assert not gate_K[slots:].any()
        assert assignments.expert_TK[token, slots:].tolist() == [void] * (3 - slots), (
            "nobody else's"
        )


@pytest.mark.parametrize("gates", ["renormalised", "equal"])
@pytest.mark.parametrize("wild", [torch.inf, -torch.inf, torch.nan])
def test_what_anothers_router_gives_stays_its_own(wild: float, gates: str) -> None:
    torch.manual_seed(0)
    wide = router(1, num_experts=4, top_k=3, gates=gates)
    members = [router(0, num_experts=3, top_k=2), None, wide]
    hidden_TD, member_T = torch.randn(9, 6, dtype=torch.float64), torch.arange(9) % 3
    before = join_routers(members)
    assert members[2] is not None
    members[2].weight.data.fill_(wild)
    after = join_routers(members)
    assert before is not None
    assert after is not None
    wanted, got = before.route(hidden_TD, member_T), after.route(hidden_TD, member_T)
    others = member_T != 2
    assert torch.equal(got.expert_TK[others], wanted.expert_TK[others])
    assert torch.equal(got.gate_TK[others], wanted.gate_TK[others])
    assert not got.gate_TK[~others].isfinite().any() or wild == -torch.inf, "it is seen at home"


@pytest.mark.parametrize(
    "fields", [{"routing": "top_p"}, {"routing": "switch"}, {"gates": "residual"}], ids=str
)
def test_other_strategies_have_no_joint_router(fields: dict[str, object]) -> None:
    assert join_routers([router(0), router(1, **fields)]) is None
