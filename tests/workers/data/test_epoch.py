"""Weights of sources: how often each row comes in an epoch; and epochs as steps."""

from collections import Counter

import pytest

from workers.config.base import InputError
from workers.config.train import OptimizerSpec
from workers.data.epoch import Part, drawn, rows_of_an_epoch, steps_of_run


def counts(parts: list[Part], epochs: range, seed: int = 1) -> Counter[int]:
    return Counter(row for epoch in epochs for row in drawn(parts, epoch, seed))


def test_a_weight_is_how_often_each_row_comes() -> None:
    parts = [Part(6), Part(4, 2.0), Part(0, 3.0), Part(3)]
    assert rows_of_an_epoch(parts) == 17
    expected = {row: 2 if 6 <= row < 10 else 1 for row in range(13)}
    assert counts(parts, range(1)) == counts(parts, range(7, 8)) == expected


def test_half_a_weight_is_another_half_in_each_epoch() -> None:
    parts = [Part(10, 0.5), Part(4)]
    first, second = (set(drawn(parts, epoch, 1)) for epoch in (0, 1))
    assert len(first) == len(second) == rows_of_an_epoch(parts) == 9
    assert first & second == {10, 11, 12, 13}
    assert first | second == set(range(14))


@pytest.mark.parametrize("weight", [0.1, 0.34, 0.5, 1.25, 2.7, 0.999, 1.001, 1.5])
@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_in_the_long_run_every_row_comes_as_often_as_its_weight_says(
    weight: float, rows: int
) -> None:
    """5 rows at 0.5 came 0.4 times in an epoch, and 1 row at 1.5 once, for ever."""
    parts = [Part(3), Part(rows, weight)]
    own = range(3, 3 + rows)
    for epoch in range(9):
        once = counts(parts, range(epoch, epoch + 1))
        assert once.total() <= rows_of_an_epoch(parts) < 4 + weight * rows
        assert abs(once.total() - 3 - weight * rows) < 1
        assert max(once[row] for row in own) - min(once[row] for row in own) <= 1
    many = counts(parts, range(1000))
    assert {many[row] for row in own} == {round(1000 * weight)}


@pytest.mark.parametrize("parts", [[Part(2, 0.1)], [Part(0), Part(1, 0.1), Part(1, 0.001)]])
def test_no_epoch_is_without_a_row(parts: list[Part]) -> None:
    for epoch in range(20):
        assert 0 < drawn(parts, epoch, 1).size <= rows_of_an_epoch(parts)
    assert len(counts(parts, range(20))) == 2


def test_the_draw_depends_on_the_seed_and_the_epoch_alone() -> None:
    parts = [Part(40, 0.5), Part(40, 0.5)]
    first, again, other_seed = (drawn(parts, 3, seed).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other_seed
    one, other = drawn(parts, 0, 1)[:20].tolist(), drawn(parts, 0, 1)[20:].tolist()
    assert one != [row - 40 for row in other], "sources are drawn apart"


@pytest.mark.parametrize(
    ("epochs", "parts", "batch_size", "steps"),
    [
        (3, [Part(32)], 8, 12),
        (2, [Part(33)], 8, 10),
        (0.5, [Part(40)], 8, 3),
        (0.01, [Part(40)], 8, 1),
        (0.1, [Part(240)], 8, 3),
        (2, [Part(16, 2.0), Part(10, 0.5)], 8, 10),
    ],
    ids=["whole", "a rest", "half", "at least one", "as it is written", "weights"],
)
def test_a_run_makes_as_many_steps_as_its_epochs_take(
    epochs: float, parts: list[Part], batch_size: int, steps: int
) -> None:
    optimizer = OptimizerSpec(epochs=epochs, batch_size=batch_size)
    assert steps_of_run(optimizer, lambda: parts) == steps


def test_rows_are_not_asked_for_where_it_says_steps() -> None:
    def never() -> list[Part]:
        raise AssertionError("rows were counted")

    assert steps_of_run(OptimizerSpec(steps=7), never) == 7


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    optimizer = OptimizerSpec(epochs=0.5, batch_size=8, warmup_steps=3)
    assert steps_of_run(optimizer, lambda: [Part(64)]) == 4
    with pytest.raises(InputError, match=r"warmup_steps is 3, .*epochs 0\.5 makes 3 of these"):
        steps_of_run(optimizer, lambda: [Part(40)])
