"""An epoch's figures, against its batches as a run makes them; rows that are on both sides."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import AutoTokenizer

from workers.config.base import override
from workers.config.train import TrainSpec
from workers.data.batches import Batch
from workers.data.encode import Encoder
from workers.data.packing import batches_of
from workers.data.store.epoch_figures import epoch_figures
from workers.data.store.same_rows import same_rows
from workers.data.store.token_store import TokenStore
from workers.losses.cross_entropy import IGNORED
from workers.train.layout import lay_out

Rows = Sequence[dict[str, Any]]


@pytest.fixture
def spec(tiny_model_dir: Path, tmp_path: Path) -> TrainSpec:
    """37 rows of many lengths to learn from, and 5 others to compare on."""
    lengths = Random(0)
    train = [row(f"{at:02}", "p" * lengths.randint(1, 60)) for at in range(37)]
    for name, rows in (("train", train), ("validation", [row(f"v{at}") for at in range(5)])):
        write(tmp_path / f"{name}.jsonl", rows)
    return TrainSpec.model_validate(
        {
            "model": {"path": str(tiny_model_dir)},
            "data": {
                "train": str(tmp_path / "train.jsonl"),
                "validation": str(tmp_path / "validation.jsonl"),
                "template": "plain",
            },
            "optimizer": {"batch_size": 8, "steps": 10},
        }
    )


def row(target: str, prompt: str = "p", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "target": target, **more}


def write(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


def positions_of(batch: Batch) -> int:
    return batch.input_ids_BS.numel()


def store(spec: TrainSpec) -> TokenStore:
    return TokenStore(Encoder(AutoTokenizer.from_pretrained(spec.model.path), spec.data))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer.micro_batch_size": 2},
        {"parallel.workers": 4},
        {"parallel.workers": {"min": 1, "max": 2}},
        {"parallel.workers": 2, "optimizer.micro_batch_size": 2, "seed": 3},
        {"data.max_length": 96, "optimizer.micro_batch_tokens": 128},
        {"data.max_length": 96, "optimizer.micro_batch_tokens": 96, "parallel.workers": 2},
        {"data.packing": True, "data.max_length": 96, "optimizer.micro_batch_tokens": 128},
        {"data.packing": True},
        {"data.packing": True, "data.max_length": 96, "optimizer.micro_batch_size": 1, "seed": 3},
        {"data.packing": True, "parallel.workers": {"min": 1, "max": 2}},
    ],
    ids=str,
)
def test_they_are_those_of_the_batches_that_a_run_makes(
    changes: dict[str, Any], spec: TrainSpec
) -> None:
    spec = override(spec, changes, "test")
    train = store(spec).training()
    workers = spec.parallel.max_workers
    batches = [
        batch
        for rank in range(workers)
        for each in [batches_of(spec, train.examples, (), rank, workers)]
        for step in range(each.steps_per_epoch)
        for batch in lay_out(spec, each.micro_batches(step, spec.pass_limit), 0)
    ]
    figures = epoch_figures(train, spec)
    assert (figures.steps, figures.epochs) == (5, 2)
    positions = sum(map(positions_of, batches))
    tokens = sum(int(batch.attention_mask_BS.sum()) for batch in batches)
    assert figures.padding_share == pytest.approx(1 - tokens / positions)
    assert figures.positions_per_step == pytest.approx(positions / 5 / workers)
    widest = max(batches, key=positions_of)
    largest, scored = figures.largest, widest.labels_BS[:, 1:] != IGNORED
    assert 0 <= largest.rows * largest.scored - int(scored.sum()) < largest.rows
    if spec.data.packing:
        assert figures.padding_share == 0
        assert largest.rows == len(widest.lengths)
        assert 0 <= largest.rows * largest.length - positions_of(widest) < largest.rows
    else:
        assert (largest.rows, largest.length) == tuple(widest.input_ids_BS.shape)


def test_weights_of_sources_make_an_epoch_longer(spec: TrainSpec) -> None:
    twice = [{"source": spec.data.train, "weight": 2}]
    spec = override(spec, {"data.train": twice}, "test")
    assert epoch_figures(store(spec).training(), spec).steps == 10


def test_rows_of_both_sides_are_counted_and_the_first_named(
    spec: TrainSpec, tmp_path: Path
) -> None:
    def found() -> Any:
        rows = store(spec)
        return same_rows(rows.training(), rows.validation())

    assert found() is None
    known = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[5])
    others = [row("v"), {**known, "task": "other"}, row("w"), known]
    write(tmp_path / "validation.jsonl", others)
    same = found()
    assert (same.rows, same.of) == (2, 4)
    assert same.first == f"{tmp_path}/validation.jsonl: line 2"
    assert str(same).startswith("2 of 4 validation rows are training rows too (the first: ")
    assert same.as_dict() == {"rows": 2, "of": 4, "first": same.first}


def test_a_split_has_none_in_common(spec: TrainSpec, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [row(str(at % 20)) for at in range(60)])
    held_out = override(spec, {"data.validation.share": 0.4}, "test")
    rows = store(held_out)
    assert same_rows(rows.training(), rows.validation()) is None
