"""A pass over sources of unknown length: every row comes as its weight says, and sources mix."""

import json
from collections import Counter
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import pytest

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.streaming.mixed import copies, one_pass


def write(path: Path, name: str, rows: int) -> str:
    lines = [{"prompt": f"{name} {row:04d}", "target": "t"} for row in range(rows)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return str(path)


def spec(*sources: Any, **changes: Any) -> DataSpec:
    data = {"train": list(sources), "validation": "none", "streaming": True}
    return DataSpec.model_validate(data | changes)


def prompts(data: DataSpec, seed: int = 0, number: int = 0) -> list[str]:
    return [unread.read().prompt for unread in one_pass(data, seed, number)]


def test_every_row_comes_once_and_short_sources_are_spread_over_the_pass(tmp_path: Path) -> None:
    sizes = {"long": 600, "middle": 150, "short": 30}
    data = spec(*(write(tmp_path / f"{name}.jsonl", name, rows) for name, rows in sizes.items()))
    found = prompts(data)
    assert len(found) == len(set(found)) == sum(sizes.values())
    for name, rows in sizes.items():
        mine = [place for place, one in enumerate(found) if one.startswith(name)]
        assert [found[place] for place in mine] == sorted(found[place] for place in mine)
        for at, place in enumerate(mine):  # where it would be if it was spread evenly
            assert place / len(found) == pytest.approx((at + 0.5) / rows, abs=0.06)


@pytest.mark.parametrize("weight", [0.25, 0.4, 1.0, 2.0, 2.5])
def test_rows_come_as_often_as_their_weight_says(tmp_path: Path, weight: float) -> None:
    weighed = {"source": write(tmp_path / "some.jsonl", "some", 40), "weight": weight}
    data = spec(weighed, write(tmp_path / "other.jsonl", "other", 10))
    passes = 20
    counts = Counter(one for number in range(passes) for one in prompts(data, 3, number))
    assert {counts[f"other {row:04d}"] for row in range(10)} == {passes}
    assert {counts[f"some {row:04d}"] for row in range(40)} == {round(weight * passes)}


def test_copies_of_a_row_never_differ_by_more_than_one() -> None:
    drawn = Random(0)
    for place in range(50):
        weight = Fraction(str(drawn.choice([0.1, 0.3, 0.5, 1.7])))
        some = [copies(weight, f"a: line {place}", number) for number in range(30)]
        assert max(some) - min(some) <= 1
        for number, total in enumerate(accumulate(some), 1):
            assert abs(total - number * weight) < 1


def test_files_come_in_an_order_of_their_own_in_each_pass(tmp_path: Path) -> None:
    for name in "abcdef":
        write(tmp_path / "in" / f"{name}.jsonl", name, 3)
    data = spec(str(tmp_path / "in"))
    orders = ["".join(one[0] for one in prompts(data, number=number)) for number in range(4)]
    assert len(set(orders)) > 1
    assert {"".join(sorted(one)) for one in orders} == {"aaabbbcccdddeeefff"}
    assert orders == ["".join(one[0] for one in prompts(data, number=n)) for n in range(4)]
    first = spec(str(tmp_path / "in"), max_rows=4)
    assert {tuple(prompts(first, number=number)) for number in range(4)} == {
        ("a 0000", "a 0001", "a 0002", "b 0000")
    }


def test_a_hub_is_read_from_where_it_lies_beside_files(tmp_path: Path) -> None:
    write(tmp_path / "hub" / "train.jsonl", "hub", 20)
    data = spec(f"hub:{tmp_path / 'hub'}", write(tmp_path / "file.jsonl", "file", 20))
    found = prompts(data)
    assert sorted(found) == [f"{name} {row:04d}" for name in ("file", "hub") for row in range(20)]
    assert abs(sum(one.startswith("hub") for one in found[:20]) - 10) <= 1


def test_what_is_wrong_is_said_when_it_is_read(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", "row", 3)
    with Path(source).open("a") as file:
        file.write('{"prompt": "p", "target": ""}\n')
    unread = list(one_pass(spec(source), 0, 0))
    assert len(unread) == 4, "nobody has looked into them"
    with pytest.raises(InputError, match=r"rows\.jsonl: line 4: its target is empty"):
        unread[3].read()
    Path(source).write_text("")
    with pytest.raises(InputError, match=r"rows\.jsonl: holds no rows"):
        prompts(spec(source))
