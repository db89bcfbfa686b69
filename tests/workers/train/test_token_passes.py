"""A step is the same whether its passes are counted in rows or in tokens."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distributed.expert_parallel_cases import CASES, Case, build
from tests.workers.train.greedy import greedy, tokens
from tests.workers.train.test_packing import Watched, rows
from workers.config.losses import LossSpec
from workers.config.parallel import PassLimit
from workers.config.train import TrainSpec
from workers.data.batches import Batches, collate
from workers.run.events import read_events
from workers.run.record import RunPlan
from workers.train.loop import TrainingRun
from workers.train.step import StepResult, TrainStep

SpecMaker = Callable[..., TrainSpec]
SHAPES = [case for case in CASES if not case.skewed]


def step(case: Case, limit: PassLimit) -> tuple[StepResult, dict[str, torch.Tensor], int]:
    """One of many rows: what it gave, its gradients, and how many passes it took. Losses that are
    made of what comes together in a pass are off."""
    base, adapter = build(case, torch.float64, checkpointing=case.recomputed)
    spec = case.spec.model_copy(
        update={"loss": LossSpec(load_balance_weight=0.0, z_loss_weight=0.01)}
    )
    update = Watched(adapter, spec.optimizer)
    passes = Batches(rows(24, 5), 24).micro_batches(0, limit)
    taken = TrainStep(spec, base, adapter, update)([collate(one, 0) for one in passes])
    return taken, update.gradients, len(passes)


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.name)
def test_loss_and_gradients_are_those_of_rows(case: Case) -> None:
    wanted, gradients, by_rows = step(case, PassLimit(rows=2))
    got, mine, by_tokens = step(case, PassLimit(tokens=64))
    assert by_tokens < by_rows == 12
    assert got.losses == pytest.approx(wanted.losses, rel=1e-10, abs=1e-10)
    assert got.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-10)
    assert mine.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(mine[name], gradient, atol=1e-10, rtol=1e-10)


def test_a_run_learns_with_them_and_halves_them(make_spec: SpecMaker, tmp_path: Path) -> None:
    spec = make_spec(optimizer__micro_batch_tokens=256, evaluation__batch_size=None)
    run = TrainingRun(spec, RunPlan(tmp_path / "run", "study"))
    (tmp_path / "run").mkdir()
    hook = greedy(run.inputs.base.model, tokens(160))
    while not run.done:
        run.advance()
    hook.remove()
    said = [one.message for one in read_events(tmp_path / "run") if one.kind == "memory"]
    assert any(
        "tokens at most in a forward pass from here on (before: 256 tokens)" in m for m in said
    )
    assert any("tokens at most in an evaluation's pass" in message for message in said)
    assert run.taking.fitting.training.tokens is not None
    assert run.taking.fitting.training.tokens <= 160
    run.close()


@pytest.mark.parametrize("packing", [False, True])
def test_short_rows_fill_a_pass(make_spec: SpecMaker, tmp_path: Path, packing: bool) -> None:
    spec = make_spec(optimizer__micro_batch_tokens=256, data__packing=packing)
    run = TrainingRun(spec, RunPlan(tmp_path / "run", "study"))
    lengths = [len(one) for one in run.taking.batches.micro_batches(0)[0]]
    passes = run.taking.batches.micro_batches(0, spec.pass_limit)
    assert 1 < len(passes) < 8
    for one in passes:
        held = sum(map(len, one)) if packing else len(one) * max(map(len, one))
        assert held <= 256
    assert sorted(len(row) for one in passes for row in one) == sorted(lengths)
    run.close()
