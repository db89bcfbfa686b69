"""Evaluation against the plain way: one row at a time, the whole sequence's logits."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workers.data.encode import Example
from workers.metrics import score, score_choices
from workers.parallel.world import World
from workers.spec import TrainSpec
from workers.train.evaluate import Evaluation
from workers.train.loop import TrainingRun
from workers.train.record import RunPlan
from workers.train.results import RowResult, summarise

SpecMaker = Callable[..., TrainSpec]


@pytest.fixture
def run(make_spec: SpecMaker, tmp_path: Path) -> TrainingRun:
    """An adapter that routes, and changes the base's answers."""
    spec = make_spec(optimizer__lr=2e-2, evaluation__generate=True, evaluation__batch_size=5)
    run = TrainingRun(spec, RunPlan(tmp_path, "study"))
    run.advance()
    return run


def log_likelihood(run: TrainingRun, example: Example) -> float:
    ids = torch.tensor([example.prompt + example.target])
    log_p = run.inputs.base.model(ids).logits[0].log_softmax(-1)
    first = len(example.prompt)
    return sum(float(log_p[at - 1, int(ids[0, at])]) for at in range(first, ids.shape[1]))


def answer(run: TrainingRun, prompt: tuple[int, ...]) -> str:
    """Greedy, by repeated whole forward passes."""
    ids, base = list(prompt), run.inputs.base
    for _ in range(run.spec.evaluation.max_new_tokens):
        ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == run.inputs.encoder.end[0]:
            break
    return str(base.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)).strip()


@torch.no_grad()
def test_batches_give_what_one_row_at_a_time_gives(run: TrainingRun) -> None:
    evaluation = Evaluation(run.inputs, run.adapter, run.spec.evaluation, World())
    measured = evaluation()
    encoder, rows = run.inputs.encoder, run.inputs.validation
    results = []
    for index, row in enumerate(rows):
        example = encoder.example(row)
        if row.choices:
            likelihoods = [log_likelihood(run, choice) for choice in encoder.choices(row)]
            value = score_choices(row.metric, likelihoods, row)
        else:
            value = score(row.metric, answer(run, example.prompt), row)
        loss = -log_likelihood(run, example)
        results.append(RowResult(index, loss, len(example.target), value))
    expected = summarise(rows, results)
    assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert measured["score"] == pytest.approx(expected["score"])
    assert 0 < measured["score"] < 1, "a score that says nothing"
    for task, entry in expected["tasks"].items():
        assert measured["tasks"][task] == entry | {"loss": pytest.approx(entry["loss"], rel=1e-5)}


@torch.no_grad()
def test_routing_counts_real_validation_tokens_only(run: TrainingRun) -> None:
    measured = Evaluation(run.inputs, run.adapter, run.spec.evaluation, World())()["routing"]
    counts = {layer: torch.zeros(4) for layer in measured}
    for row in run.inputs.validation:
        example = run.inputs.encoder.example(row)
        with run.adapter.record() as records:
            run.inputs.base.model(torch.tensor([example.prompt + example.target]))
        for record in records:
            counts[record.layer] += torch.bincount(record.routing.expert_TK.flatten(), minlength=4)
    assert set(measured) == {"layers.0.mlp", "layers.1.mlp"}
    for layer, entry in measured.items():
        load = counts[layer] / counts[layer].sum()
        # One row of a batch may round across a tie of two experts.
        assert entry["load"] == pytest.approx(load.tolist(), abs=2e-3)
        entropy = float(-(load * load.clamp(min=1e-9).log()).sum() / torch.tensor(4.0).log())
        assert entry["entropy"] == pytest.approx(entropy, abs=2e-3)
        assert 0 < entry["entropy"] <= 1


def test_rows_per_task_and_loss_alone(make_spec: SpecMaker, tmp_path: Path) -> None:
    spec = make_spec(evaluation__rows_per_task=3, adapter__num_experts=1, adapter__top_k=1)
    validation = TrainingRun(spec, RunPlan(tmp_path, "study")).advance()["validation"]
    assert {task: entry["rows"] for task, entry in validation["tasks"].items()} == {
        "call": 3,
        "room": 3,
    }
    assert "score" not in validation
    assert "value" not in validation["tasks"]["call"]
    assert "routing" not in validation, "plain LoRA has no router"


def test_a_worker_without_rows_takes_part(run: TrainingRun) -> None:
    """More workers than rows: nobody may wait for what such a worker does not send."""
    sent: list[object] = []

    class Third(World):
        def gather(self, value: object) -> list[object]:
            sent.append(value)
            return [([RowResult(0, 2.0, 1, 1.0)], {}), value]

    rows = run.inputs.validation
    run.inputs.__dict__["validation"] = rows[:2]
    measured = Evaluation(run.inputs, run.adapter, run.spec.evaluation, Third(2, 3))()
    assert sent == [([], {})]
    assert measured["loss"] == 2.0
