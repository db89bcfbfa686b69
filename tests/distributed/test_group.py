"""A Ray Train group whose workers share the experts of one copy."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.session import Session
from orchestrator.tuning.trainer import fit
from workers.adapter import files
from workers.config.base import override
from workers.config.train import TrainSpec
from workers.parallel.world import World
from workers.run.events import read_events
from workers.run.record import RunPlan, read_rows
from workers.train.loop import TrainingRun


def test_two_workers_with_half_of_the_experts_each(
    ray_cluster: Session, make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    # Adam makes a whole step of the rounding of a gradient near zero.
    spec = make_spec(optimizer__lr=5e-4, parallel__workers=2, parallel__ep_size=2)
    spec = override(spec, {"model.activation_checkpointing": True}, "test")
    plan = RunPlan(tmp_path / "run", "study")
    adapter, last = fit(spec, plan)

    choice = json.loads((plan.folder / "exchange.json").read_text())
    other = {"tokens": "weights", "weights": "tokens"}[choice["exchange"]]
    seconds = choice["measured_seconds"]
    assert 0 < seconds[choice["exchange"]] <= seconds[other]
    assert choice["reason"].startswith("the routed layers took")
    (said,) = [one.message for one in read_events(plan.folder) if one.kind == "exchange"]
    assert choice["reason"] in said
    predicted = choice["predicted_bytes"][choice["exchange"]]
    # A step of tiny rows, and a router that has favourites.
    sent = last["train"]["exchanged_bytes_per_step"]
    assert sent == pytest.approx(predicted, rel=0.01 if choice["exchange"] == "weights" else 0.5)

    alone = TrainingRun(spec, RunPlan(tmp_path / "alone", "study"), world=World())
    while not alone.done:
        expected = alone.advance()
    assert last["train"]["loss"] == pytest.approx(expected["train"]["loss"], rel=1e-5)
    assert last["validation"]["loss"] == pytest.approx(expected["validation"]["loss"], rel=1e-5)
    tensors = files.read(adapter).tensors
    for name, tensor in alone.adapter.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, atol=1e-5, rtol=0)


# Of passes that differ, the balance loss would.
BY_TOKENS = {"optimizer__micro_batch_tokens": 128, "loss__load_balance_weight": 0.0}


@pytest.mark.parametrize("way", ["streaming", "packing", "tokens"])
def test_two_workers_share_the_rows_of_one(
    ray_cluster: Session, make_spec: Callable[..., TrainSpec], tmp_path: Path, way: str
) -> None:
    asked = BY_TOKENS if way == "tokens" else {f"data__{way}": True}
    data = {**asked, "data__streaming_buffer": 24, "data__record_rows": True}
    plain = {"optimizer__name": "sgd", "optimizer__lr": 0.5}  # Adam magnifies rounding
    length = {"optimizer__epochs": 3} if way == "packing" else {"optimizer__steps": 6}
    spec = make_spec(**length, parallel__workers=2, **plain, **data)
    plan = RunPlan(tmp_path / "run", "study")
    adapter, last = fit(spec, plan)
    (tmp_path / "alone").mkdir()
    alone = TrainingRun(spec, RunPlan(tmp_path / "alone", "study"), world=World())
    while not alone.done:
        expected = alone.advance()
    assert last["epoch"] == expected["epoch"] > 0
    assert last["validation"]["loss"] == pytest.approx(expected["validation"]["loss"], rel=1e-5)
    tensors = files.read(adapter).tensors
    for name, tensor in alone.adapter.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, atol=1e-5, rtol=0)
    shared, whole = (read_rows(folder) for folder in (plan.folder, tmp_path / "alone"))
    assert [len(shared), *map(len, shared.values())] == [6] + [2] * 6
    for step, workers in shared.items():
        assert sorted(row for each in workers for row in each) == sorted(whole[step][0])
    if way == "packing":
        taken = Counter(row for step in whole.values() for row in step[0])
        assert taken == dict.fromkeys(range(16), 3), "every row comes once in each epoch"
