"""What a step makes of routing decisions."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
from transformers import get_scheduler

from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.batches import collate
from workers.data.example import Example, Span
from workers.injection.adapter import LayerRecord
from workers.injection.inject import inject
from workers.layers.routing.base import Routing
from workers.losses.auxiliary import RoutedLayer, load_balance
from workers.parallel.update import Replicated
from workers.train.evaluation.results import ExpertCounts
from workers.train.inputs import Inputs
from workers.train.step import TrainStep, share_of_peak

SpecMaker = Callable[..., TrainSpec]


def test_the_balance_loss_counts_what_switch_asked_for(make_spec: SpecMaker) -> None:
    """Not what its capacity let through: there, full experts all have the same load."""
    spec = make_spec(adapter__routing="switch", adapter__expert_capacity=1)
    inputs = Inputs.load(spec)
    adapter = inject(inputs.base.model.train(), spec.adapter, seed=1)
    batch = collate(inputs.train[:4], inputs.pad_token_id)
    with torch.no_grad(), adapter.record(batch.attention_mask_BS) as records:
        inputs.base.model(batch.input_ids_BS, attention_mask=batch.attention_mask_BS)
    wanted, served = [], []
    for record in records:
        asked_T1 = record.routing.logits_TE.argmax(-1, keepdim=True)
        got = record.routing._replace(asked_TK=None)
        asked = got._replace(expert_TK=asked_T1)
        for losses, routing in ((wanted, asked), (served, got)):
            losses.append(load_balance(RoutedLayer(routing, record.mask_T), spec.loss))
    update = Replicated(adapter, spec.optimizer)
    result = TrainStep(spec, inputs.base, adapter, update)([batch])
    expected = torch.stack(wanted).mean().item()
    assert result.losses["load_balance"] == pytest.approx(expected, rel=1e-5)
    assert abs(torch.stack(served).mean().item() - expected) > 0.01


def test_void_slots_are_no_experts_load() -> None:
    expert_TK = torch.tensor([[0, 3], [3, 2], [3, 3], [1, 0]])
    routing = Routing(torch.zeros(4, 3), expert_TK, torch.ones(4, 2))
    counts = ExpertCounts()
    record = LayerRecord("layers.0.mlp", routing, None, ())
    counts.count([record], torch.ones(1, 4))
    assert counts.summary()["layers.0.mlp"]["load"] == [0.5, 0.25, 0.25]
    counts.count([record], torch.tensor([[0, 1], [1, 0]]))
    assert counts.summary()["layers.0.mlp"]["load"] == [0.4, 0.2, 0.4]


@pytest.mark.parametrize("parts", [1, 4])
def test_a_weighted_loss_is_over_the_weights_of_the_whole_step(
    make_spec: SpecMaker, parts: int
) -> None:
    spec = make_spec(loss__load_balance_weight=0.0, loss__contrastive_weight=0.0)
    inputs = Inputs.load(spec)
    model = inputs.base.model.train()
    adapter = inject(model, spec.adapter, seed=1)
    model.double()
    draw = Random(0)
    examples = [
        Example(one.ids, (Span(1, 4, 0.25), replace(one.spans[0], weight=draw.random())))
        for one in inputs.train[:8]
    ]
    losses, weights = [], []
    for one in examples:
        logits = model(torch.tensor([[*map(int, one.ids)]])).logits[0].log_softmax(-1)
        for span in one.spans:
            for at in range(span.start, span.stop):
                weight = float(torch.tensor(span.weight))  # in the precision of a batch
                losses.append(-weight * logits[at - 1, int(one.ids[at])])
                weights.append(weight)
    expected = torch.stack(losses).sum() / sum(weights)
    parameters = [one for one in adapter.parameters() if one.requires_grad]
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
    norm = torch.cat([one.flatten() for one in gradients if one is not None]).norm()
    size = len(examples) // parts
    batches = [
        collate(examples[start : start + size], inputs.pad_token_id)
        for start in range(0, len(examples), size)
    ]
    result = TrainStep(spec, inputs.base, adapter, Replicated(adapter, spec.optimizer))(batches)
    assert result.losses["cross_entropy"] == pytest.approx(expected.item(), rel=1e-9)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_warm_up_begins_above_zero_and_the_rest_is_transformers_own(schedule: str) -> None:
    spec = OptimizerSpec(steps=20, warmup_steps=4, schedule=schedule)  # type: ignore[arg-type]
    shares = [share_of_peak(spec, step) for step in range(21)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    named = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(named, optimizer, num_warmup_steps=4, num_training_steps=20)
    assert shares[4:] == pytest.approx([theirs.lr_lambdas[0](step) for step in range(4, 21)])
    assert share_of_peak(OptimizerSpec(steps=20, schedule="cosine"), 0) == 1
