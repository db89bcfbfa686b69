"""The sides of a split: by what a row says, wherever it stands."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.rows import Row, training_rows, validation_rows
from workers.data.sources.records import data_digest
from workers.data.split import is_held_out, row_key


def record(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"p{number}", "target": f"t{number}", **more}


def data(folder: Path, *sources: list[dict[str, Any]], share: float = 0.2, **more: Any) -> DataSpec:
    places = []
    for at, rows in enumerate(sources):
        places.append(str(folder / f"{at}.jsonl"))
        Path(places[-1]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = places if len(places) > 1 else places[0]
    return DataSpec.model_validate({"train": train, "validation": {"share": share}, **more})


def said(rows: list[Row]) -> list[str]:
    return sorted(row.target for row in rows)


KNOWN = 3543401803347492433
MANY = [record(number) for number in range(2000)]


def test_every_row_is_on_one_side(tmp_path: Path) -> None:
    spec = data(tmp_path, MANY)
    train, held_out = list(training_rows(spec)), list(validation_rows(spec))
    assert said(train + held_out) == sorted(row["target"] for row in MANY)
    # Of a binomial distribution, seven standard deviations.
    assert len(held_out) == pytest.approx(400, abs=126)


def test_a_row_stays_on_its_side_wherever_it_stands(tmp_path: Path) -> None:
    whole = said(validation_rows(data(tmp_path, MANY)))
    shuffled = Random(0).sample(MANY, len(MANY))
    assert said(validation_rows(data(tmp_path, shuffled))) == whole
    twice = [*MANY, *({**row, "task": "other", "metric": "rouge_l"} for row in MANY)]
    assert said(validation_rows(data(tmp_path, twice))) == sorted(whole * 2)
    parts = data(tmp_path, MANY[:900], MANY[900:])
    assert said(validation_rows(parts)) == whole
    assert {row.source for row in training_rows(parts)} == {0, 1}


def test_a_chat_of_the_same_words_is_the_same_row(tmp_path: Path) -> None:
    def chat(number: int) -> dict[str, Any]:
        turns = [
            {"role": "user", "content": f"p{number}", "name": None},
            {"role": "assistant", "content": f"t{number}"},
        ]
        return {"messages": turns}

    chats = [chat(number) for number in range(len(MANY))]
    prompts = said(validation_rows(data(tmp_path, MANY)))
    assert said(validation_rows(data(tmp_path, chats))) == prompts


def test_the_first_rows_are_those_of_the_side(tmp_path: Path) -> None:
    whole = data(tmp_path, MANY)
    few = data(tmp_path, MANY, max_rows=5)
    assert list(training_rows(few)) == list(training_rows(whole))[:5]
    assert list(validation_rows(few)) == list(validation_rows(whole))


def test_what_is_held_out_stays_so_where_the_share_grows(tmp_path: Path) -> None:
    small = set(said(validation_rows(data(tmp_path, MANY, share=0.1))))
    large = set(said(validation_rows(data(tmp_path, MANY, share=0.3))))
    assert small < large


def test_the_hash_is_the_one_that_studies_began_with() -> None:
    turns = ({"role": "user", "content": "p é"},)
    assert row_key(turns, "t") == KNOWN
    assert row_key(({"content": "p é", "role": "user"},), "t") == KNOWN
    assert row_key(turns, "u") != KNOWN
    assert row_key(turns, "\ud800") != row_key(turns, "\ud801")
    assert is_held_out(KNOWN, 0.2)
    assert not is_held_out(KNOWN, 0.19)


@pytest.mark.parametrize(
    ("share", "what"), [(1e-6, "no row to compare on"), (0.999999, "no row to learn from")]
)
def test_a_side_without_rows_is_refused(share: float, what: str, tmp_path: Path) -> None:
    spec = data(tmp_path, MANY[:3], share=share)
    read = training_rows if "learn" in what else validation_rows
    with pytest.raises(InputError) as caught:
        list(read(spec))
    assert str(caught.value) == (
        f"data.validation: a share of {share:g} leaves {what} of those in {tmp_path}/0.jsonl; take "
        "another share, or validation rows of their own"
    )


def test_the_digest_knows_the_split(tmp_path: Path) -> None:
    digests = {data_digest(data(tmp_path, MANY, share=share)) for share in (0.1, 0.2)}
    apart = data(tmp_path, MANY).model_copy(update={"validation": str(tmp_path / "0.jsonl")})
    assert len(digests | {data_digest(apart)}) == 3


def test_the_ids_of_calls_say_nothing() -> None:
    def key(number: str, argument: int = 1) -> int:
        call = {"type": "function", "function": {"name": "f", "arguments": {"a": argument}}}
        turns = (
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [call | {"id": number}]},
            {"role": "tool", "content": "r", "tool_call_id": number, "name": "f"},
        )
        return row_key(turns, "t")

    assert key("call_x81") == key("call_0qz")
    assert key("call_x81") != key("call_x81", argument=2)
