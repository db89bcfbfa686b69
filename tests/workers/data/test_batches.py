"""Batches: the same rows for any worker count, every row in every epoch, no padding counted."""

import tracemalloc
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch

from workers.config.parallel import PassLimit
from workers.data.batches import Batches, collate, collate_prompts
from workers.data.epoch import Part, drawn, shuffled
from workers.data.example import Example, Span
from workers.data.rows import Row
from workers.data.store.arrow import StoredExamples, write
from workers.losses.cross_entropy import IGNORED

GOLD = [
    [0, 9, 5, 1],
    [10, 10, 6, 2],
    [7, 3, 8, 4],
    [1, 10, 6, 2],
    [7, 3, 8, 4],
    [0, 0, 9, 5],
]
"""Six steps of 11 rows by 4 with seed 5."""

NO_ROW = Row((), "", "", "", "", (), (), -1)


def examples(count: int) -> list[Example]:
    return [Example.of(tuple(range(1, 2 + 7 * i % 31)), (100 + i, 2)) for i in range(count)]


@pytest.mark.parametrize(("rows", "batch_size"), [(64, 8), (53, 8), (3, 8), (1, 4), (700, 4)])
def test_every_row_comes_in_every_epoch_and_every_step_is_full(rows: int, batch_size: int) -> None:
    batches = Batches(examples(rows), batch_size, seed=3)
    for epoch in range(2):
        first = epoch * batches.steps_per_epoch
        steps = [batches.indices(first + step) for step in range(batches.steps_per_epoch)]
        assert {len(step) for step in steps} == {batch_size}
        counts = Counter(index for step in steps for index in step)
        assert set(counts) == set(range(rows))
        if rows >= batch_size:
            assert max(counts.values()) <= 2


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_any_number_of_workers_shares_the_rows_of_one_and_has_equal_steps(world: int) -> None:
    data = examples(50)
    alone = Batches(data, 12, seed=1)
    workers = [Batches(data, 12, seed=1, rank=rank, world=world) for rank in range(world)]
    for step in range(3 * alone.steps_per_epoch):
        rows = Counter(row for worker in workers for row in worker.mine(step))
        assert rows == Counter(alone.indices(step))
        passes = [worker.micro_batches(step, PassLimit(rows=5)) for worker in workers]
        assert {tuple(map(len, one)) for one in passes} == {tuple(map(len, passes[0]))}
        for worker, one in zip(workers, passes, strict=True):
            assert [row for part in one for row in part] == worker.share(step)


def test_a_step_depends_on_nothing_but_its_number() -> None:
    data = examples(50)
    walked = Batches(data, 8, seed=1)
    seen = [walked.indices(step) for step in range(20)]
    assert [Batches(data, 8, seed=1).indices(step) for step in reversed(range(20))] == seen[::-1]
    assert [Batches(data, 8, seed=2).indices(step) for step in range(20)] != seen
    epoch = walked.steps_per_epoch
    assert [walked.indices(step) for step in range(epoch)] != [
        walked.indices(epoch + step) for step in range(epoch)
    ]


def test_the_order_of_one_source_is_what_it_always_was() -> None:
    """A run of an earlier version goes on with the rows that it would have had."""
    batches = Batches(examples(11), 4, seed=5)
    assert [batches.indices(step) for step in range(6)] == GOLD
    two = Batches(examples(11), 4, seed=5, parts=[Part(7), Part(4)])
    assert [two.indices(step) for step in range(6)] == GOLD


def test_sources_come_as_often_as_their_weights_say() -> None:
    parts = [Part(20), Part(10, 0.5), Part(5, 3.0)]
    batches = Batches(examples(35), 4, seed=3, parts=parts)
    assert batches.steps_per_epoch == 10
    steps = [batches.indices(step) for step in range(20)]
    epochs = [Counter(row for step in part for row in step) for part in (steps[:10], steps[10:])]
    for counts in epochs:
        assert counts == {row: 1 if row < 30 else 3 for row in range(35) if row in counts}
        assert {row for row in counts if not 20 <= row < 30} == {*range(20), *range(30, 35)}
    halves = [{row for row in counts if 20 <= row < 30} for counts in epochs]
    assert halves[0] | halves[1] == set(range(20, 30))
    assert not halves[0] & halves[1]
    workers = [Batches(examples(35), 4, seed=3, rank=r, world=2, parts=parts) for r in range(2)]
    for step in reversed(range(20)):
        assert Counter(row for one in workers for row in one.mine(step)) == Counter(steps[step])


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_every_epoch_has_the_same_number_of_steps(batch_size: int) -> None:
    """Also where it has one row less; every row of it comes."""
    parts = [Part(3), Part(5, 0.5), Part(1, 0.1)]
    batches = Batches(examples(9), batch_size, seed=3, parts=parts)
    steps = batches.steps_per_epoch
    assert steps == -(-7 // batch_size)
    for epoch in range(12):
        taken = [batches.indices(epoch * steps + step) for step in range(steps)]
        assert all(len(step) == batch_size for step in taken)
        assert {row for step in taken for row in step} == set(drawn(parts, epoch, 3).tolist())


def order_of_before(
    examples: list[Example], parts: list[Part], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """As releases before the token store drew it, with lists of numbers. Runs that they began go on
    with the same rows, where weights make whole numbers of them."""
    random, rows, before = Random(f"{seed}/{epoch}"), list[int](), 0
    for at, part in enumerate(parts):
        mine = list(range(part.rows)) * part.whole
        rest = round((part.weight - part.whole) * part.rows)
        if rest:
            order = Random(f"{seed}/source {at}").sample(range(part.rows), part.rows)
            first = epoch * rest
            mine += [order[(first + place) % part.rows] for place in range(rest)]
        rows += [before + row for row in mine]
        before += part.rows
    order = random.sample(rows, len(rows))
    while missing := -len(order) % batch_size:
        order += order[:missing]
    batches = []
    for start in range(0, len(order), 32 * batch_size):
        group = sorted(order[start : start + 32 * batch_size], key=lambda row: len(examples[row]))
        batches += [group[at : at + batch_size] for at in range(0, len(group), batch_size)]
    random.shuffle(batches)
    return batches


@pytest.mark.parametrize("rows", [1, 3, 5, 6, 21, 22, 700])
@pytest.mark.parametrize("weights", [(), (1.0,), (0.3, 2.5)], ids=str)
def test_the_order_is_that_of_releases_before(rows: int, weights: tuple[float, ...]) -> None:
    rows *= 10 if len(weights) > 1 else 1
    data = examples(rows * max(1, len(weights)))
    parts = [Part(rows, weight) for weight in weights or (1.0,)]
    batches = Batches(data, 4, seed=3, parts=parts if weights else ())
    for epoch in range(3):
        wanted = order_of_before(data, parts, 4, 3, epoch)
        first = epoch * batches.steps_per_epoch
        found = [batches.indices(first + step) for step in range(batches.steps_per_epoch)]
        assert found == wanted


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6, 21, 22, 1000])
def test_a_shuffle_draws_as_pythons_sample_does(count: int) -> None:
    for seed in range(10):
        wanted = Random(seed).sample(range(count), count)
        assert shuffled(Random(seed), count).tolist() == wanted


def test_a_stores_rows_are_batched_as_a_lists(tmp_path: Path) -> None:
    data = examples(50)
    write(tmp_path / "rows", ((NO_ROW, one) for one in data), 200, scored=False)
    stored = StoredExamples((tmp_path / "rows").open("rb"))
    ours, theirs = Batches(stored, 8, seed=1), Batches(data, 8, seed=1)
    for step in range(10):
        assert ours.indices(step) == theirs.indices(step)
        wanted = collate(theirs.share(step), 0)
        found = collate(ours.share(step), 0)
        assert torch.equal(found.input_ids_BS, wanted.input_ids_BS)
        assert torch.equal(found.labels_BS, wanted.labels_BS)


def test_rows_of_like_length_come_together() -> None:
    data = examples(640)
    batches = Batches(data, 8)
    padded = sum(8 * max(map(len, batches.share(step))) for step in range(batches.steps_per_epoch))
    assert padded < 1.15 * sum(map(len, data))
    unsorted = sum(8 * max(map(len, data[start : start + 8])) for start in range(0, 640, 8))
    assert unsorted > 1.4 * sum(map(len, data))


def test_micro_batches_are_the_share_in_parts() -> None:
    batches = Batches(examples(50), 8, world=2)
    parts = batches.micro_batches(5, PassLimit(rows=2))
    assert [len(part) for part in parts] == [2, 2]
    assert [example for part in parts for example in part] == batches.share(5)
    assert batches.micro_batches(5) == [batches.share(5)]


def test_labels_are_on_targets_alone() -> None:
    batch = collate([Example.of((5, 6, 7), (8, 2)), Example.of((9,), (3, 2))], pad_token_id=3)
    assert batch.input_ids_BS.tolist() == [[5, 6, 7, 8, 2], [9, 3, 2, 3, 3]]
    assert batch.attention_mask_BS.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    # Token 3 is the pad token and also a target's token: only the padding is ignored.
    assert batch.labels_BS.tolist() == [
        [IGNORED, IGNORED, IGNORED, 8, 2],
        [IGNORED, 3, 2, IGNORED, IGNORED],
    ]
    assert batch.to(torch.device("cpu")).labels_BS.dtype == torch.long


def test_weights_are_there_where_they_matter() -> None:
    plain = Example.of((5, 6), (8, 2))
    unlearned = Example((5, 6, 7, 8, 2), (Span(1, 2), Span(3, 5, weight=0)))
    batch = collate([plain, unlearned], pad_token_id=3)
    assert batch.weights_BS is None
    assert batch.labels_BS.tolist() == [
        [IGNORED, IGNORED, 8, 2, IGNORED],
        [IGNORED, 6, IGNORED, IGNORED, IGNORED],
    ]
    assert (batch.counted, unlearned.learned) == (3, 1)
    half = Example((5, 6, 7, 8, 2), (Span(1, 2, 0.5), Span(3, 5)))
    batch = collate([plain, half], pad_token_id=3).to(torch.device("cpu"))
    assert batch.weights_BS is not None
    assert batch.weights_BS.tolist() == [[0, 0, 1, 1, 0], [0, 0.5, 0, 1, 1]]
    assert batch.counted == 4.5


def test_prompts_are_padded_on_the_left() -> None:
    ids, mask = collate_prompts([(5, 6, 7), (9,)], pad_token_id=3)
    assert ids.tolist() == [[5, 6, 7], [3, 3, 9]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_what_a_worker_holds_of_a_row_does_not_depend_on_its_tokens(tmp_path: Path) -> None:
    """An order's numbers, and lengths: as lists of Python's integers they would take 70 bytes, and
    a row of these as one 2,000."""

    def peak(rows: int) -> int:
        row = Example.of(range(40), (1, 2))
        write(tmp_path / "rows", ((NO_ROW, row) for _ in range(rows)), 200, scored=False)
        tracemalloc.start()
        batches = Batches(StoredExamples((tmp_path / "rows").open("rb")), 8)
        for step in range(100):
            batches.share(step)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)
    assert (peak(44_000) - peak(4_000)) / 40_000 < 40
