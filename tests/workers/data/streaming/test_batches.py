"""Batches of a stream: the same on any number of workers, and after going on in the middle."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.config.base import InputError
from workers.config.parallel import PassLimit
from workers.config.train import TrainSpec
from workers.data.encode import Encoder
from workers.data.example import Example
from workers.data.rows import UnreadRow
from workers.data.sources.records import SourceDigests
from workers.data.streaming import windows
from workers.data.streaming.batches import StreamedBatches
from workers.data.streaming.mixed import one_pass
from workers.data.streaming.windows import ReadingEndedError

ROWS, BUFFER, BATCH = 50, 16, 4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"{row:02d}" + "p" * (row % 7), "target": "t"} for row in range(ROWS)]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


class Streams:
    """Makes the batches of workers of a run."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: Path, **changes: Any) -> None:
        self.tokenizer = tokenizer
        data = {"train": str(source), "validation": str(source), "template": "plain"}
        data |= {"streaming": True, "streaming_buffer": BUFFER, "max_length": 64} | changes
        optimizer = {"steps": 1000, "batch_size": BATCH}
        fields = {"model": {"path": "none"}, "data": data, "optimizer": optimizer, "seed": 5}
        self.spec = TrainSpec.model_validate(fields)
        self.noted = SourceDigests.of(self.spec.data).listings

    def made(self, rank: int = 0, world: int = 1, **more: Any) -> StreamedBatches:
        encoder = Encoder(self.tokenizer, self.spec.data)
        return StreamedBatches(self.spec, encoder, self.noted, (rank, world), **more)

    def text(self, example: Example) -> str:
        return self.tokenizer.decode(example.prompt)[:2]

    def rows(self, batches: StreamedBatches, step: int) -> list[str]:
        passes = batches.micro_batches(step, PassLimit(rows=2))
        return [self.text(one) for each in passes for one in each]


@pytest.fixture
def streams(tokenizer: PreTrainedTokenizerBase, source: Path) -> Streams:
    return Streams(tokenizer, source)


def test_all_rows_come_as_often_and_in_another_order(streams: Streams) -> None:
    batches = streams.made()
    passes = 8  # as many rows as whole windows have
    steps = [streams.rows(batches, step) for step in range(passes * ROWS // BATCH)]
    counts = Counter(row for step in steps for row in step)
    assert counts == {f"{row:02d}": passes for row in range(ROWS)}
    first = [row for step in steps[: BUFFER // BATCH] for row in step]
    assert sorted(first) == [f"{row:02d}" for row in range(BUFFER)], "a window is what comes first"
    assert first != sorted(first)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("packing", [False, True])
def test_any_number_of_workers_shares_the_rows_of_one(
    tokenizer: PreTrainedTokenizerBase, source: Path, world: int, packing: bool
) -> None:
    streams = Streams(tokenizer, source, packing=packing)
    alone = streams.made()
    workers = [streams.made(rank, world) for rank in range(world)]
    for step in range(40):
        rows = [row for worker in workers for row in streams.rows(worker, step)]
        assert Counter(rows) == Counter(streams.rows(alone, step))
        numbers = [row for worker in workers for row in worker.mine(step)]
        assert sorted(numbers) == sorted(alone.mine(step))
        assert {worker.epoch(step + 1) for worker in workers} == {alone.epoch(step + 1)}


@pytest.mark.parametrize("changes", [{}, {"max_length": 6, "too_long": "skip"}], ids=str)
def test_whoever_goes_on_has_the_rows_that_would_have_come(
    tokenizer: PreTrainedTokenizerBase, source: Path, changes: dict[str, Any]
) -> None:
    streams = Streams(tokenizer, source, **changes)
    batches, steps = streams.made(), 40
    rows, places, epochs = [], [], []
    for step in range(steps):
        places.append(batches.position(step))
        rows.append(streams.rows(batches, step))
        epochs.append(batches.epoch(step + 1))
    assert json.loads(json.dumps(places)) == places, "plain values, for a checkpoint"
    known = [one for one in epochs if one]
    assert known == sorted(known)
    assert known[-1] > 2
    for step in range(0, steps, 3):
        again = streams.made()
        again.seek(places[step])
        assert [streams.rows(again, one) for one in range(step, steps)] == rows[step:]
        assert again.epoch(steps) == epochs[-1]


def test_a_short_run_reads_no_more_than_it_trains_on(streams: Streams) -> None:
    optimizer = streams.spec.optimizer.model_copy(update={"steps": 6})
    streams.spec = streams.spec.model_copy(update={"optimizer": optimizer})
    batches = streams.made()
    assert batches.counts.rows == BUFFER
    rows = [row for step in range(6) for row in streams.rows(batches, step)]
    assert batches.counts.rows == 6 * BATCH - BUFFER
    assert sorted(rows) == [f"{row:02d}" for row in range(6 * BATCH)]


def test_epochs_are_passes_once_their_length_is_known(streams: Streams) -> None:
    batches = streams.made()
    epochs = []
    for step in range(5 * BUFFER // BATCH):
        batches.micro_batches(step)
        epochs.append(batches.epoch(step + 1))
    in_first = 3 * BUFFER // BATCH  # the fourth window has the end of the first pass
    assert epochs[:in_first] == [0.0] * in_first
    for step, epoch in enumerate(epochs[in_first:], in_first + 1):
        assert epoch == pytest.approx(step * BATCH / ROWS)


def test_a_bad_row_is_named_where_training_comes_to_it(streams: Streams, source: Path) -> None:
    with source.open("a") as file:
        file.write('{"prompt": "p", "target": ""}\n')
    streams.noted = SourceDigests.of(streams.spec.data).listings
    batches = streams.made()
    for step in range(3 * BUFFER // BATCH):
        batches.micro_batches(step)
    with pytest.raises(InputError, match=r"rows\.jsonl: line 51: its target is empty"):
        batches.micro_batches(3 * BUFFER // BATCH)


def test_a_source_that_changes_between_passes_is_refused(streams: Streams, source: Path) -> None:
    batches = streams.made()
    batches.micro_batches(0)
    source.write_text(source.read_text() + json.dumps({"prompt": "new", "target": "t"}) + "\n")
    for step in range(3 * BUFFER // BATCH):
        batches.micro_batches(step)
    with pytest.raises(InputError, match=r"rows\.jsonl: has changed while it was read"):
        batches.micro_batches(3 * BUFFER // BATCH)


def test_a_window_in_which_no_row_is_kept_is_refused(
    tokenizer: PreTrainedTokenizerBase, source: Path
) -> None:
    streams = Streams(tokenizer, source, max_length=2, too_long="skip")
    with pytest.raises(InputError, match=r"rows\.jsonl, streamed: no row is left; 16 left out"):
        streams.made()


def test_who_is_closed_reads_no_further(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    behind, go = threading.Event(), threading.Event()

    def halting(*which: Any) -> Iterator[UnreadRow]:
        for at, row in enumerate(one_pass(*which)):
            if at == BUFFER + 2:
                behind.set()
                go.wait()
            yield row

    monkeypatch.setattr(windows, "one_pass", halting)
    batches = streams.made()
    assert behind.wait(30), "the next window is read ahead"
    threading.Timer(0.5, go.set).start()
    batches.close()
    with pytest.raises(ReadingEndedError):
        batches.micro_batches(BUFFER // BATCH)


def test_only_rows_that_come_are_progress(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watchdog must see a reader that hangs, and one that only takes long must not be killed."""
    go, told = threading.Event(), []
    encoded = windows.encoded

    def slow(encoder: Encoder, rows: Any) -> Any:
        for _each in range(3):
            next(rows)
            time.sleep(0.5)
        go.wait()
        return encoded(encoder, rows)

    monkeypatch.setattr(windows, "encoded", slow)
    waiting = threading.Thread(
        target=streams.made, kwargs={"moving": lambda: told.append(time.monotonic())}, daemon=True
    )
    waiting.start()
    deadline = time.monotonic() + 60
    while len(told) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)  # the last row has come
    so_far = len(told)
    time.sleep(1)
    assert 3 <= so_far == len(told)
    go.set()
    waiting.join(30)
    assert not waiting.is_alive()
