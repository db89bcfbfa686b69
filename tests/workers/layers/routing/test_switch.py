"""The capacity of switch. Shapes: T tokens, K slots."""

import pytest
import torch

from tests.workers.layers.routing.cases import DIM, EXPERTS, FORMS, compare, hidden, router


@pytest.mark.parametrize("gates", FORMS)
def test_switch_fills_each_expert_in_the_order_of_its_sequence(gates: str) -> None:
    layer = router(routing="switch", gates=gates, expert_capacity=2).double().train()
    inputs = hidden(24)
    routing = layer(inputs, sequences=8)
    overflows: list[bool] = []
    for sequence in inputs.view(3, 8, DIM):
        seen = dict.fromkeys(range(EXPERTS), 0)
        for token in sequence:
            expert = int((layer.weight @ token).argmax())
            seen[expert] += 1
            overflows.append(seen[expert] > 2)
    assert 3 < sum(overflows) < 21
    assert (routing.expert_TK[:, 0] == EXPERTS).tolist() == overflows
    compare(layer, routing, inputs, overflows)
    whole = layer(inputs)
    assert (whole.expert_TK[:, 0] == EXPERTS).sum() > sum(overflows), "all 24 are one sequence"
    assert (layer.eval()(inputs, sequences=8).expert_TK[:, 0] < EXPERTS).all()


def test_sequences_of_any_lengths_have_a_capacity_each() -> None:
    layer = router(routing="switch", expert_capacity=2).double().train()
    inputs, lengths = hidden(24), [1, 9, 5, 0, 9]
    number_T = torch.arange(5).repeat_interleave(torch.tensor(lengths))
    alone = [layer(one).expert_TK for one in inputs.split(lengths) if len(one)]
    assert torch.equal(layer(inputs, number_T).expert_TK, torch.cat(alone))
    equal = torch.arange(3).repeat_interleave(8)
    assert torch.equal(layer(inputs, equal).expert_TK, layer(inputs, 8).expert_TK)
    assert not torch.equal(layer(inputs, equal).expert_TK, layer(inputs).expert_TK)


def test_what_was_asked_for_is_told_beside_what_was_got() -> None:
    """The balance loss counts it: full experts would look balanced."""
    layer = router(routing="switch", gates="residual", expert_capacity=1).double().train()
    routing = layer(hidden(24), sequences=8)
    asked_T1 = routing.logits_TE.argmax(-1, keepdim=True)
    assert torch.equal(routing.wanted_TK, asked_T1)
    assert not torch.equal(routing.expert_TK[:, :1], asked_T1)
    unbounded = layer.eval()(hidden(24), sequences=8)
    assert unbounded.wanted_TK is unbounded.expert_TK
