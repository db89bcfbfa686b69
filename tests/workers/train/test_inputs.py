"""Runs of one node share their encoded rows, and what they learn does not depend on who encoded."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.data.encode import Encoder
from workers.data.store import token_store
from workers.run.heartbeat import HeartbeatWriter
from workers.run.record import Metrics, RunPlan
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun

SpecMaker = Callable[..., TrainSpec]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def trained(spec: TrainSpec, folder: Path, inputs: Inputs | None = None) -> tuple[Any, Metrics]:
    run = TrainingRun(spec, RunPlan(folder, "study"), inputs=inputs)
    while not run.done:
        report = run.advance()
    weights = {name: tensor.clone() for name, tensor in run.adapter.state_dict().items()}
    run.close()
    return weights, report["validation"]


def test_a_second_trial_finds_the_rows_and_learns_the_same(
    make_spec: SpecMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    spec = make_spec()
    first, validation = trained(spec, tmp_path)
    with monkeypatch.context() as patch:
        patch.delattr(Encoder, "some_kept")  # nothing is encoded
        second, again = trained(spec, tmp_path)
    shutil.rmtree(cache)  # by hand, under nobody's feet
    third, anew = trained(spec, tmp_path)
    assert validation == again == anew
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=0, rtol=0)
        torch.testing.assert_close(third[name], tensor, atol=0, rtol=0)


def test_rows_stay_readable_when_the_cache_is_cleared(
    make_spec: SpecMaker, tmp_path: Path, cache: Path
) -> None:
    spec = make_spec()
    expected, _ = trained(spec, tmp_path)
    inputs = Inputs.load(spec)
    inputs.encode()
    shutil.rmtree(cache)
    found, _ = trained(spec, tmp_path, inputs)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0)


def test_a_trial_of_other_data_reads_its_own(make_spec: SpecMaker, tmp_path: Path) -> None:
    """As an actor goes from trial to trial."""
    first = Inputs.load(make_spec())
    longer = Inputs.load(make_spec(data__max_rows=5), first)
    assert (len(first.train), len(longer.train)) == (16, 5)
    assert len(Inputs.load(make_spec(), longer).train) == 16
    first.encode()
    assert Inputs.load(make_spec(adapter__rank=2), first) is first


def test_a_run_that_encodes_is_seen_to_move(
    make_spec: SpecMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_store, "OFTEN", 1)
    places: list[str] = []

    class Watched(HeartbeatWriter):
        def moving(self) -> None:
            places.append(self.standing()[1])
            super().moving()

    run = TrainingRun(make_spec(), RunPlan(tmp_path, "study"), heartbeat=Watched())
    run.close()
    assert places.count("encode") >= 32  # each row of both sources
    assert set(places) <= {"encode"}


def test_digests_are_taken_before_rows_are_read(
    make_spec: SpecMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be read fails when the inputs are loaded, and not at a checkpoint hours later."""

    def no_rows(*_: object) -> Iterator[object]:
        raise AssertionError("rows are read")

    monkeypatch.setattr(Encoder, "some_kept", no_rows)
    inputs = Inputs.load(make_spec())
    assert inputs.used.data == inputs.data_digest


@pytest.mark.parametrize("side", ["train", "validation"])
def test_other_rows_than_were_noted_are_not_learned(
    make_spec: SpecMaker, tmp_path: Path, side: str
) -> None:
    """A file that changes between the digest, which lineage has, and the encoding."""
    source = tmp_path / "rows.jsonl"
    shutil.copy(getattr(make_spec().data, side), source)
    inputs = Inputs.load(make_spec(**{f"data__{side}": str(source)}))
    source.write_text(source.read_text().replace("kitchen", "library"))
    with pytest.raises(InputError, match=r"rows\.jsonl: has changed while it was read"):
        inputs.encode()
