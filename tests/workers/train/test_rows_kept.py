"""Rows that are too long: a run that leaves them out is the run of a file without them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workers.config.base import InputError, override
from workers.config.train import TrainSpec
from workers.run.events import read_events
from workers.run.record import Metrics, RunPlan, RunRecord, read_rows
from workers.train.attempt import _begin
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun

SpecMaker = Callable[..., TrainSpec]
LONG = {"prompt": "say", "target": "t" * 120, "task": "call"}


@pytest.fixture
def specs(make_spec: SpecMaker, rows_file: Path, tmp_path: Path) -> Callable[[str], TrainSpec]:
    """A run of the rows (`refuse`), or of rows with two long ones between them by that policy."""
    rows = rows_file.read_text().splitlines()
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join([*rows[:3], json.dumps(LONG), *rows[3:], json.dumps(LONG)]))

    def make(policy: str) -> TrainSpec:
        source = str(rows_file if policy == "refuse" else mixed)
        return make_spec(
            data__train=source,
            data__validation=source,
            data__record_rows=True,
            data__max_length=96,
            data__too_long=policy,
            adapter__dropout=0.1,
        )

    return make


def figures(report: Metrics) -> Metrics:
    """A report without the clock."""
    train = {k: v for k, v in report["train"].items() if k != "tokens_per_second"}
    return {**report, "train": train}


def trained(
    spec: TrainSpec, folder: Path, cut_off: bool = False
) -> tuple[list[Metrics], TrainingRun]:
    """All reports; with `cut_off`, of two runs, the second of which goes on with the first."""
    folder.mkdir()
    run = TrainingRun(spec, RunPlan(folder, "study"))
    reports = []
    while not run.done:
        reports.append(figures(run.advance()))
        if cut_off:
            (folder / "checkpoint").mkdir()
            run.save(folder / "checkpoint")
            run.close()
            run, cut_off = TrainingRun(spec, RunPlan(folder, "study")), False
            run.load(folder / "checkpoint")
    return reports, run


@pytest.mark.parametrize("cut_off", [False, True])
def test_rows_left_out_change_nothing(
    specs: Callable[[str], TrainSpec], tmp_path: Path, cut_off: bool
) -> None:
    expected, wanted = trained(specs("refuse"), tmp_path / "without")
    reports, run = trained(specs("skip"), tmp_path / "skipped", cut_off)
    assert reports == expected
    assert read_rows(tmp_path / "skipped") == read_rows(tmp_path / "without")
    assert (run.inputs.train_counts.rows, run.inputs.train_counts.skipped) == (16, 2)
    assert len(run.inputs.validation) == len(run.inputs.validation_examples) == 16
    ours, theirs = run.adapter.state_dict(), wanted.adapter.state_dict()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=0, rtol=0)


@pytest.mark.parametrize("cut_off", [False, True])
def test_several_sources_with_weights_are_one_run_and_gone_on_with_exactly(
    make_spec: SpecMaker, rows_file: Path, tmp_path: Path, cut_off: bool
) -> None:
    """The second source has 6 rows that are kept, of which 3 come in each epoch of 11."""
    rows = rows_file.read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join(rows[:8]))
    (tmp_path / "b.jsonl").write_text("\n".join([json.dumps(LONG), *rows[8:14]]))
    half = {"source": str(tmp_path / "b.jsonl"), "weight": 0.5}
    spec = make_spec(
        data__train=[str(tmp_path / "a.jsonl"), half],
        data__record_rows=True,
        data__max_length=96,
        data__too_long="skip",
        optimizer__steps=6,
        optimizer__batch_size=4,
        evaluation__every=3,
    )
    folder = tmp_path / "run"
    reports, run = trained(spec, folder, cut_off)
    assert run.inputs.train_counts.rows_of == [8, 6]
    assert [report["epoch"] for report in reports] == [1, 2]
    taken = read_rows(folder)
    epochs = [[row for at in part for row in taken[at][0]] for part in (range(3), range(3, 6))]
    for seen in epochs:
        assert set(range(8)) < set(seen)
        assert len({row for row in seen if row >= 8}) == 3
    assert {row for seen in epochs for row in seen} == set(range(14))


@pytest.mark.parametrize("cut_off", [False, True])
def test_what_is_held_out_is_never_learned_and_gone_on_with_exactly(
    make_spec: SpecMaker, rows_file: Path, tmp_path: Path, cut_off: bool
) -> None:
    spec = make_spec(
        data__train=str(rows_file),
        data__validation={"share": 0.4},
        optimizer__steps=4,
        optimizer__batch_size=4,
        evaluation__every=2,
    )
    _, run = trained(spec, tmp_path / "run", cut_off)
    learned = [tuple(example.ids) for example in run.inputs.train]
    compared = [tuple(example.ids) for example in run.inputs.validation_examples]
    assert len(learned) + len(compared) == 16
    assert compared
    assert not {*learned} & {*compared}
    assert run.inputs.validation_counts.source == f"a share of 0.4 of {rows_file}"


def test_rows_that_are_cut_are_learned(specs: Callable[[str], TrainSpec], tmp_path: Path) -> None:
    reports, run = trained(specs("cut"), tmp_path / "cut")
    assert len(reports) == 2
    assert (run.inputs.train_counts.rows, run.inputs.train_counts.targets_cut) == (18, 2)
    assert max(map(len, run.inputs.train)) == 96


def test_rows_are_counted_by_their_layouts(make_spec: SpecMaker, tmp_path: Path) -> None:
    names = ("instruction", "output"), ("prompt", "target"), ("prompt", "completion")
    sources = [tmp_path / f"{at}.jsonl" for at in range(3)]
    for path, pair, count in zip(sources, names, (3, 2, 1), strict=True):
        path.write_text((json.dumps(dict.fromkeys(pair, "say")) + "\n") * count)
    inputs = Inputs.load(make_spec(data__train=list(map(str, sources))))
    assert len(inputs.train) == 6
    said = str(inputs.train_counts)
    assert "6 rows, 3 read as Alpaca (instruction, output), 1 read as prompts and compl" in said


def test_a_trial_says_which_row_is_refused(
    specs: Callable[[str], TrainSpec], tmp_path: Path
) -> None:
    spec = override(specs("skip"), {"data.too_long": "refuse"}, "test")
    record = RunRecord(tmp_path / "run")
    record.begin(spec)
    with pytest.raises(InputError), record.failure_kept():
        TrainingRun(spec, RunPlan(tmp_path / "run", "study"))
    said = (tmp_path / "run" / "error.txt").read_text()
    assert "mixed.jsonl: line 4: its target has 121 tokens" in said


def test_a_run_notes_the_layout_that_its_rows_were_recognised_by(
    make_spec: SpecMaker, rows_file: Path, tmp_path: Path
) -> None:
    rows = map(json.loads, rows_file.read_text().splitlines())
    path = tmp_path / "alpaca.json"
    path.write_text(
        json.dumps([{"instruction": row["prompt"], "output": row["target"]} for row in rows])
    )
    spec = make_spec(data__train=str(path))
    record = RunRecord(tmp_path / "run")
    record.begin(spec)
    run = TrainingRun(spec, RunPlan(tmp_path / "run", "study"), inputs=Inputs.load(spec))
    _begin(run, record)
    notes = [one.message for one in read_events(tmp_path / "run") if one.kind == "data"]
    said = [one for one in notes if "training rows too" not in one]
    assert [one.split("rows, ")[1].split(",")[0] for one in said] == ["read as Alpaca (instruction"]


@pytest.mark.parametrize(("policy", "noted"), [("refuse", 0), ("skip", 2), ("cut", 2)])
def test_a_run_notes_what_its_rows_lost(
    specs: Callable[[str], TrainSpec], tmp_path: Path, policy: str, noted: int
) -> None:
    """As both ways to start a run begin."""
    record = RunRecord(tmp_path / "run")
    spec = specs(policy)
    record.begin(spec)
    run = TrainingRun(spec, RunPlan(tmp_path / "run", "study"), inputs=Inputs.load(spec))
    _begin(run, record)
    notes = [one.message for one in read_events(tmp_path / "run") if one.kind == "data"]
    said = [one for one in notes if "training rows too" not in one]
    assert len(said) == noted
    assert all("mixed.jsonl: line 4" in one for one in said)
