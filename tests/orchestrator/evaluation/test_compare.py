"""On which rows a version is measured."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.evaluation.compare import Measurement
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.data.rows import validation_rows
from workers.run.record import RunPlan
from workers.train.loop import TrainingRun

MakeVersion = Callable[[TrainSpec], Registry]


@pytest.fixture
def version(tmp_path: Path) -> MakeVersion:
    """Registers an adapter that was trained so, though for no step."""

    def make(spec: TrainSpec) -> Registry:
        run = TrainingRun(spec, RunPlan(tmp_path / "run", "study"))
        run.save_adapter(tmp_path / "adapter")
        run.close()
        registry = Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path)
        version = registry.register("study", 0, tmp_path / "adapter", {"validation": {"loss": 1.0}})
        why = {"metric": "validation/loss", "force": True, "reason": "to measure it"}
        promote(registry, version, "home", actor="test", **why)
        return registry

    return make


def test_on_those_that_were_held_out_of_its_training(
    version: MakeVersion, make_spec: Callable[..., TrainSpec], rows_file: Path
) -> None:
    spec = make_spec(data__validation={"share": 0.4})
    registry = version(spec)
    measured = Measurement.of(registry, "home", None, rows=50).spec.data
    assert list(validation_rows(measured)) == list(validation_rows(spec.data))
    others = Measurement.of(registry, "home", str(rows_file), rows=50).spec.data
    assert len(list(validation_rows(others))) == 16
    assert others.train == others.validation == str(rows_file)


def test_what_it_was_trained_on_may_be_gone(
    version: MakeVersion, make_spec: Callable[..., TrainSpec], rows_file: Path, tmp_path: Path
) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text(rows_file.read_text())
    for validation in (str(rows_file), {"share": 0.4}):
        train.write_text(rows_file.read_text())
        registry = version(make_spec(data__train=str(train), data__validation=validation))
        train.unlink()
        if isinstance(validation, str):
            assert (
                len(list(validation_rows(Measurement.of(registry, "home", None, 9).spec.data)))
                == 16
            )
        else:
            with pytest.raises(InputError, match=r"train\.jsonl: no such file"):
                Measurement.of(registry, "home", None, 9)
