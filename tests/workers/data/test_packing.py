"""Packing: a step's rows dealt out by their tokens, and laid one after another."""

from collections import Counter
from dataclasses import replace
from random import Random
from statistics import mean, pstdev

import pytest
import torch

from workers.config.parallel import PassLimit
from workers.data.batches import Batches
from workers.data.example import Example, Span
from workers.data.packing import PackedBatches, deal, pack
from workers.losses.cross_entropy import IGNORED

LENGTHS = Random(0).choices(range(3, 60), k=150)
EXAMPLES = [Example.of(tuple(range(5, 4 + length)), (2,)) for length in LENGTHS]


@pytest.mark.parametrize("tokens", [None, 60, 200])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 12])
def test_workers_share_a_steps_rows_by_tokens_in_as_many_passes(
    world: int, tokens: int | None
) -> None:
    workers = [PackedBatches(EXAMPLES, 12, seed=1, rank=rank, world=world) for rank in range(world)]
    limit = PassLimit(tokens=tokens)
    for step in range(3 * workers[0].steps_per_epoch):
        shares = [worker.mine(step, limit) for worker in workers]
        assert Counter(row for share in shares for row in share) == Counter(
            workers[0].indices(step)
        )
        passes = [worker.micro_batches(step, limit) for worker in workers]
        (count,) = {len(one) for one in passes}
        assert count == 1 or tokens is not None
        for one, share in zip(passes, shares, strict=True):
            assert [row for part in one for row in part] == [EXAMPLES[row] for row in share]
            assert all(part for part in one), "each worker has rows in each pass"
            assert all(sum(map(len, part)) <= (tokens or 12 * 60) for part in one)


def test_a_pass_is_as_long_on_every_worker() -> None:
    hands = deal(LENGTHS[:64], workers=4, passes=2)
    totals = [sum(LENGTHS[place] for place in hand) for hand in hands]
    assert sorted(place for hand in hands for place in hand) == list(range(64))
    assert max(totals) - min(totals) <= max(LENGTHS)
    assert max(totals) < 1.05 * min(totals)


def test_there_are_no_more_passes_than_it_takes() -> None:
    assert len(deal([10] * 12, workers=2, tokens=60)) == 2
    assert len(deal([10] * 12, workers=2, tokens=59)) == 4
    assert len(deal([60, 60, 10, 10], workers=2, tokens=60)) == 4
    assert len(deal([90, 10], workers=2, tokens=60)) == 2, "a row is never cut, a pass never empty"
    assert len(deal([10] * 4, workers=2, passes=9)) == 4


def test_lengths_have_no_say_in_what_comes_together() -> None:
    """By length alone, the longest rows of a step would tell its shortest."""
    packed, alike = PackedBatches(EXAMPLES, 5, seed=2), Batches(EXAMPLES, 5, seed=2)
    spread = [
        mean(
            pstdev(LENGTHS[row] for row in batches.indices(step))
            for step in range(batches.steps_per_epoch)
        )
        for batches in (packed, alike)
    ]
    assert spread[1] < 1 < 0.7 * pstdev(LENGTHS) < spread[0]


def test_a_step_depends_on_nothing_but_its_number() -> None:
    def run() -> PackedBatches:
        return PackedBatches(EXAMPLES, 8, seed=1, world=2)

    walked = run()
    seen = [walked.mine(step) for step in range(40)]
    assert [run().mine(step) for step in reversed(range(40))] == seen[::-1]


def test_rows_follow_one_another_and_none_predicts_the_next() -> None:
    first = Example.of((5, 6, 7), (8, 2))
    text = Example((9, 3, 4), (Span(0, 3, 0.5),))
    batch = pack([first, text, first], pad_token_id=3)
    assert batch.lengths == (5, 3, 5)
    assert batch.input_ids_BS.tolist() == [[5, 6, 7, 8, 2, 9, 3, 4, 5, 6, 7, 8, 2]]
    assert batch.attention_mask_BS.all()
    none = IGNORED
    assert batch.labels_BS.tolist() == [
        [none, none, none, 8, 2, none, 3, 4, none, none, none, 8, 2],
    ]
    assert batch.weights_BS is not None
    assert batch.weights_BS.tolist() == [[0, 0, 0, 1, 1, 0, 0.5, 0.5, 0, 0, 0, 1, 1]]
    assert batch.counted == 5
    assert batch.to(torch.device("cpu")).lengths == batch.lengths
    assert pack([replace(text, spans=(Span(0, 1),))], 3).counted == 0
