"""Evaluation against the plain way: one row at a time, the whole sequence's logits."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.benchmarks.harness import peak_bytes
from workers.adapter.manifest import read_manifest
from workers.adapter.routing_sample import CACHE_PAGE
from workers.config.base import override
from workers.config.train import TrainSpec
from workers.data.example import Example
from workers.data.text_metrics import score, score_choices
from workers.parallel.world import World
from workers.run.record import RunPlan
from workers.train.evaluation.evaluator import Evaluation
from workers.train.evaluation.results import RowResult, summarise
from workers.train.loop import TrainingRun

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
    evaluation = Evaluation(run.inputs, run.adapter, run.spec, World())
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
    measured = Evaluation(run.inputs, run.adapter, run.spec, World())()["routing"]
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


@torch.no_grad()
def test_single_rows_are_counted_as_a_server_would_route_them(run: TrainingRun) -> None:
    """Without what all prompts begin with, in whole pages, and without the last token."""
    evaluation = Evaluation(run.inputs, run.adapter, run.spec, World(), kept_rows=9)
    rows = {row.index: row.sent for row in evaluation.measure().rows if row.sent}
    assert len(rows) == 9, "so many are kept"
    examples = run.inputs.validation_examples
    shared = {example.prompt[:CACHE_PAGE] for example in examples}
    assert len(shared) > 1, "and no page is shared"
    for index, sent in rows.items():
        ids = torch.tensor([examples[index].prompt + examples[index].target])
        with run.adapter.record() as records:
            run.inputs.base.model(ids[:, :-1])
        for record in records:
            counted = torch.bincount(record.routing.expert_TK.flatten(), minlength=4)
            assert sum(sent[record.layer]) == int(counted.sum())
            assert sent[record.layer] == pytest.approx(counted.tolist(), abs=2)  # of a tie


def test_a_page_that_all_prompts_begin_with_is_left_out(
    make_spec: SpecMaker, rows_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    for row in rows:
        row["prompt"] = "You switch the lights of a house. " + row["prompt"]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = make_spec(data__train=str(source), data__validation=str(source), optimizer__steps=2)
    run = TrainingRun(spec, RunPlan(tmp_path, "study"))
    run.advance()
    run.save_adapter(tmp_path / "adapter")
    manifest = read_manifest(tmp_path / "adapter")
    assert manifest is not None
    assert manifest.routing_sample is not None
    sample = torch.tensor(manifest.routing_sample.table()).view(manifest.routing_sample.rows, 2, 4)
    assert manifest.routing_sample.prefix == CACHE_PAGE
    shortest = min(map(len, run.inputs.validation_examples))
    assert sample.sum(-1).min() == 2 * (shortest - CACHE_PAGE - 1), "two slots for each token"


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


def test_answers_come_from_one_padded_batch_where_it_holds_all(run: TrainingRun) -> None:
    """Continuous batches say before each token that they move; both change nothing."""
    figures, moves, before = [], [], torch.get_rng_state()
    for rows in (5, 16):
        spec = override(run.spec, {"evaluation.batch_size": rows}, "test")
        told: list[int] = []
        evaluate = Evaluation(run.inputs, run.adapter, spec, World(), partial(told.append, 1))
        figures.append(evaluate()["score"])
        moves.append(len(told))
    assert figures[0] == figures[1]
    assert moves[1] < run.spec.evaluation.max_new_tokens < moves[0]
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_samples_are_what_was_answered_to_the_rows(run: TrainingRun) -> None:
    rows, encoder = run.inputs.validation, run.inputs.encoder
    assert [one.task for one in run.samples] == ["call", "room"] * 3
    for row, told in zip(rows, run.samples, strict=False):
        assert (told.question, told.expected) == (row.prompt, row.answer)
        if row.choices:
            likelihoods = [log_likelihood(run, choice) for choice in encoder.choices(row)]
            assert told.answer == row.choices[likelihoods.index(max(likelihoods))]
            assert told.score == (told.answer == row.answer)
        else:
            assert told.answer == answer(run, encoder.example(row).prompt)
            assert told.score == score(row.metric, told.answer, row)


def test_where_nothing_else_generates_samples_are_answered_at_the_end(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    spec = make_spec(optimizer__lr=2e-2, evaluation__generate=False)
    run = TrainingRun(spec, RunPlan(tmp_path, "study"))
    run.advance()
    assert run.samples == []
    told = run.advance()
    assert run.done
    assert "score" not in told["validation"]
    loud = replace(run.evaluation, spec=override(spec, {"evaluation.generate": True}, "test"))
    assert run.samples == loud.measure().samples
    assert len(run.samples) == 6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"evaluation__samples": 2}, 2),
        ({"evaluation__samples": 0}, 0),
        ({"evaluation__max_new_tokens": 100_000}, 0),
        ({"evaluation__rows_per_task": 1}, 2),
    ],
)
def test_how_many_samples_there_are(
    make_spec: SpecMaker, tmp_path: Path, changes: dict[str, int], expected: int
) -> None:
    """None for which the model has no room: it would fail, and nobody has asked for them."""
    run = TrainingRun(make_spec(optimizer__steps=2, **changes), RunPlan(tmp_path, "study"))
    run.advance()
    assert len(run.samples) == expected


def test_a_worker_without_rows_takes_part(run: TrainingRun) -> None:
    """More workers than rows: nobody may wait for what such a worker does not send."""
    sent: list[object] = []

    class Third(World):
        def gather(self, value: object) -> list[object]:
            sent.append(value)
            return [([RowResult(0, 2.0, 1, 1.0)], {}), value]

    rows = run.inputs.validation
    run.inputs.__dict__["validation"] = rows[:2]
    measured = Evaluation(run.inputs, run.adapter, run.spec, Third(2, 3))()
    assert sent == [([], {})]
    assert measured["loss"] == 2.0


def test_evaluation_takes_no_more_memory_than_a_training_step(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    """Unless told otherwise it has as many rows at once: what fits while training fits here."""
    changes = {"optimizer__batch_size": 4, "optimizer__micro_batch_size": 1}
    spec = make_spec(evaluation__batch_size=None, evaluation__generate=True, **changes)
    run = TrainingRun(spec, RunPlan(tmp_path, "study"))
    step = peak_bytes(lambda: run._train_until(1, None))
    evaluation = Evaluation(run.inputs, run.adapter, spec, World())
    assert peak_bytes(evaluation) <= step
    assert spec.evaluated_at_once == 1
    assert make_spec(evaluation__batch_size=3, **changes).evaluated_at_once == 3
    many = make_spec(evaluation__batch_size=None, optimizer__batch_size=8, parallel__workers=2)
    assert many.evaluated_at_once == 4, "also where one process evaluates"
