"""Which tasks experts serve: the figures, and a real adapter's on its rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.evaluation.compare import Measurement
from orchestrator.evaluation.expert_tasks import by_layer, expert_tasks
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from tests.orchestrator.traffic import Trained, clinic, home, rows_of, write_rows
from workers.config.base import InputError, override
from workers.train.evaluation.expert_tasks import count_by_task


def test_an_expert_serves_the_task_that_it_gets_more_of_than_of_all() -> None:
    counts = {"call": {"layers.0.mlp": [80, 20, 0]}, "room": {"layers.0.mlp": [2, 8, 0]}}
    [layer] = by_layer(counts)
    assert layer.load == pytest.approx([0.5, 0.5, 0.0])
    assert layer.lift(0) == pytest.approx({"call": 1.6, "room": 0.4})
    assert list(layer.lift(1)) == ["room", "call"]
    assert layer.lift(2) == {}
    assert [row[-1] for row in layer.rows()] == ["call 1.6x", "room 1.6x", "all alike"]
    assert 0 < layer.specialisation < 1


@pytest.mark.parametrize(
    ("first", "second", "expected"), [([9, 1], [9, 1], 0.0), ([4, 0], [0, 7], 1.0)]
)
def test_specialisation_is_between_alike_and_apart(
    first: list[int], second: list[int], expected: float
) -> None:
    [layer] = by_layer({"a": {"l": first}, "b": {"l": second}})
    assert layer.specialisation == pytest.approx(expected, abs=1e-9)


def test_a_real_router_tells_two_domains_apart(trained: Trained, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", rows_of(home, 30, 7) + rows_of(clinic, 30, 8))
    changes = {"data.train": source, "data.validation": source, "evaluation.rows_per_task": 20}
    spec = override(trained.run.spec, changes, "test")
    counts = count_by_task(spec, trained.folder)
    assert set(counts) == {"home", "clinic"}
    layers = by_layer(counts)
    assert [layer.layer for layer in layers] == ["layers.0.mlp", "layers.1.mlp"]
    one, other = (
        by_layer({task: counts[task] for task in (name, name + "2") if task in counts})
        for name in ("home", "clinic")
    )
    assert all(layer.specialisation > 0.0005 for layer in layers)
    assert one[0].load != pytest.approx(other[0].load, abs=0.01)


def test_plain_lora_has_no_experts_to_tell_of(
    trained: Trained, make_adapter: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match="no router"):
        count_by_task(trained.run.spec, make_adapter(3, num_experts=1, top_k=1))


def test_of_a_name_on_the_cluster(
    trained: Trained, ray_cluster: object, tmp_path: Path, capsys: Any
) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path)
    version = registry.register("study", 0, trained.folder, {"validation": {"loss": 1.0}})
    promote(
        registry, version, "home", actor="test", metric="validation/loss", force=True, reason="t"
    )
    [first, second] = expert_tasks(Measurement.of(registry, "home", None, rows=10, generate=False))
    assert first.tasks == second.tasks == ("home",)
    assert sum(first.load) == pytest.approx(1)
