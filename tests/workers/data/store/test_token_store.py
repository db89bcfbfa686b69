"""Rows are encoded once for all that ask for the same, and are those that the encoder gives."""

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.config.base import InputError, override
from workers.config.data import DataSpec
from workers.data.counts import RowCounts
from workers.data.encode import Encoder
from workers.data.example import Example
from workers.data.rows import Row, training_rows, validation_rows
from workers.data.store.token_store import EncodedSource, TokenStore
from workers.data.text_encoder import TextEncoder

Encoded = tuple[Row, Example]


@dataclass(frozen=True)
class Counting(Encoder):
    """Notes how often rows are encoded."""

    def some_kept(
        self, rows: Iterable[Row], counts: RowCounts, scored: bool = False
    ) -> Iterator[Encoded]:
        ENCODED.append(counts.source)
        yield from super().some_kept(rows, counts, scored)


ENCODED: list[str] = []


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOETUNE_CACHE", str(tmp_path / "cache"))
    ENCODED.clear()
    return tmp_path / "cache" / "rows"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture
def data(tmp_path: Path) -> DataSpec:
    """Rows of which some are cut and one is left out; others to be compared on."""
    for name, numbers in (("train", range(40)), ("validation", range(40, 60))):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for number in numbers:
                target = "t" * (200 if number % 19 == 5 else 1 + number % 9)
                row: dict[str, Any] = {
                    "prompt": f"é {number}" + " long" * (number % 17),
                    "target": target,
                    "task": f"task {number % 3}",
                    "metric": "acc" if number % 2 else "exact_match",
                    "choices": [target, "no"] if number % 2 else None,
                }
                file.write(json.dumps(row) + "\n")
    train, validation = (str(tmp_path / f"{name}.jsonl") for name in ("train", "validation"))
    return DataSpec(train=train, validation=validation, max_length=64, too_long="skip")


def plain(examples: Iterable[Example]) -> list[Any]:
    return [(tuple(map(int, one.ids)), one.spans) for one in examples]


def test_rows_and_counts_are_those_of_the_encoder(
    tokenizer: PreTrainedTokenizerBase, data: DataSpec
) -> None:
    encoder = Encoder(tokenizer, data)
    for rows, scored, ours in (
        (training_rows(data), False, TokenStore(encoder).training()),
        (validation_rows(data, 5), True, TokenStore(encoder).validation(5)),
    ):
        counts = RowCounts(data.validation if scored else data.train)
        kept = list(encoder.kept(rows, counts, scored))
        assert plain(ours.examples) == plain(example for _, example in kept)
        assert ours.counts == counts
        assert counts.skipped
        assert counts.prompts_cut
    assert list(ours.rows) == [row for row, _ in kept]


def test_the_second_who_asks_finds_them(
    tokenizer: PreTrainedTokenizerBase, data: DataSpec, tiny_model_dir: Path
) -> None:
    first = TokenStore(Counting(tokenizer, data)).training()
    again = AutoTokenizer.from_pretrained(tiny_model_dir)
    later = override(data, {"record_rows": True, "processes": 3, "validation": data.train}, "test")
    second = TokenStore(Counting(again, later)).training()
    assert [data.train] == ENCODED
    assert plain(second.examples) == plain(first.examples)
    assert second.counts == first.counts


CHANGES: list[dict[str, Any]] = [
    {"template": "plain"},
    {"max_length": 63},
    {"too_long": "cut"},
    {"max_rows": 7},
    {"prompt_columns": ["prompt", "task"]},
    {"task_column": "metric"},
    {"loss_on": "all"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
def test_what_an_encoding_depends_on_makes_another(
    tokenizer: PreTrainedTokenizerBase, data: DataSpec, changes: dict[str, Any]
) -> None:
    TokenStore(Encoder(tokenizer, data)).training()
    TokenStore(Counting(tokenizer, override(data, changes, "test"))).training()
    assert [data.train] == ENCODED


def test_other_rows_another_tokenizer_or_other_code_make_another(
    tokenizer: PreTrainedTokenizerBase,
    data: DataSpec,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = TokenStore(Counting(tokenizer, data))
    before = store.training()
    with Path(data.train).open("a") as file:
        file.write(json.dumps({"prompt": "new", "target": "new"}) + "\n")
    assert store.training().counts.rows == before.counts.rows + 1
    other = AutoTokenizer.from_pretrained(tiny_model_dir)
    other.chat_template = other.chat_template.replace("user", "client") + " "
    TokenStore(Counting(other, data)).training()
    other.add_tokens("t t")
    TokenStore(Counting(other, data)).training()
    monkeypatch.setattr("workers.data.store.identity.code_digest", lambda: "another release")
    store.training()
    assert len(ENCODED) == 5


def test_a_template_of_ones_own_makes_another(
    tokenizer: PreTrainedTokenizerBase, data: DataSpec
) -> None:
    """Whatever file it was read from."""
    TokenStore(Counting(tokenizer, data)).training()
    encoder = Counting(tokenizer, data)
    object.__setattr__(encoder, "text", TextEncoder(tokenizer, tokenizer.chat_template + " "))
    TokenStore(encoder).training()
    TokenStore(encoder).training()
    assert len(ENCODED) == 2


def test_validation_rows_are_as_many_as_are_asked_for(
    tokenizer: PreTrainedTokenizerBase, data: DataSpec
) -> None:
    store = TokenStore(Counting(tokenizer, data))
    few, many = store.validation(2), store.validation()
    assert len(few.rows) + few.counts.skipped == 6
    assert len(many.rows) + many.counts.skipped == 20
    assert len(ENCODED) == 2


def test_all_workers_of_a_node_share_one_encoding(
    tokenizer: PreTrainedTokenizerBase, data: DataSpec
) -> None:
    found: list[EncodedSource] = []

    def worker() -> None:
        found.append(TokenStore(Counting(tokenizer, data)).training())

    workers = [threading.Thread(target=worker) for _ in range(4)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert [data.train] == ENCODED
    assert len(found) == 4
    assert all(plain(one.examples) == plain(found[0].examples) for one in found)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"prompt": "p"}, "no column 'target'"),
        ({"prompt": "p", "target": "t" * 99}, "its target has 100 tokens"),
    ],
    ids=["column", "length"],
)
def test_a_bad_row_is_named_and_nothing_is_left(
    tokenizer: PreTrainedTokenizerBase, data: DataSpec, cache: Path, bad: Any, said: str
) -> None:
    lines = Path(data.validation).read_text().splitlines()
    short = [line for line in lines if len(json.loads(line)["target"]) < 20]
    Path(data.validation).write_text("\n".join([*short, json.dumps(bad)]))
    store = TokenStore(Counting(tokenizer, override(data, {"too_long": "refuse"}, "test")))
    for _ in range(2):
        with pytest.raises(InputError, match=rf"line {len(short) + 1}: .*{said}"):
            store.validation()
    assert len(ENCODED) == 2  # whoever comes next looks at the rows anew
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_rows_that_change_while_they_are_read_are_no_entry(
    tokenizer: PreTrainedTokenizerBase,
    data: DataSpec,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def change(_: str, done: int) -> None:
        if done:
            Path(data.train).write_text(json.dumps({"prompt": "new", "target": "new"}))

    monkeypatch.setattr("workers.data.store.token_store.OFTEN", 8)
    with pytest.raises(InputError, match="has changed while it was read"):
        TokenStore(Encoder(tokenizer, data), change).training()
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_a_source_that_cannot_be_read_is_not_said_of_the_cache(
    tokenizer: PreTrainedTokenizerBase, data: DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> Iterator[Any]:
        yield f"{data.train}: line 1", {"prompt": "p", "target": "t"}
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("workers.data.sources.records.reader", lambda _: failing)
    with pytest.raises(InputError, match=r"train\.jsonl: cannot be read: .*Input/output error"):
        TokenStore(Encoder(tokenizer, data)).training()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def zeroed(file: Path) -> None:
    """As a disk may leave it: of the right length, and no error where it is read."""
    content = file.read_bytes()
    middle = len(content) // 2  # amid the values, whose lengths stand before them
    file.write_bytes(content[:middle] + bytes(400) + content[middle + 400 :])


def no_number(file: Path) -> None:
    note = json.loads(file.read_text())
    note["counts"]["rows"] = "lots"
    file.write_text(json.dumps(note))


def gone(file: Path) -> None:
    file.unlink()


DAMAGES: list[tuple[str, Any]] = [
    ("rows.arrow", cut),
    ("rows.arrow", zeroed),
    ("rows.arrow", gone),
    ("counts.json", cut),
    ("counts.json", no_number),
    ("counts.json", gone),
]


@pytest.mark.parametrize(
    ("file", "damage"), DAMAGES, ids=[f"{file} {damage.__name__}" for file, damage in DAMAGES]
)
def test_a_damaged_entry_is_made_anew(
    tokenizer: PreTrainedTokenizerBase, data: DataSpec, cache: Path, file: str, damage: Any
) -> None:
    store = TokenStore(Counting(tokenizer, data))
    whole = plain(store.training().examples)
    [path] = cache.glob(f"*/{file}")
    damage(path)
    assert plain(store.training().examples) == whole
    assert plain(store.training().examples) == whole
    assert len(ENCODED) == 2


def test_a_damaged_entry_is_told(
    tokenizer: PreTrainedTokenizerBase,
    data: DataSpec,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = TokenStore(Encoder(tokenizer, data))
    store.training()
    [path] = cache.glob("*/rows.arrow")
    zeroed(path)
    store.training()
    [said] = caplog.messages
    assert f"{path.parent}: is damaged, so its rows are encoded again: rows.arrow has" in said


def test_it_tells_how_far_it_is(
    tokenizer: PreTrainedTokenizerBase, data: DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.data.store.token_store.OFTEN", 16)
    told: list[tuple[str, int]] = []
    TokenStore(Encoder(tokenizer, data), lambda *how_far: told.append(how_far)).training()
    assert [done for _, done in told if done] == [16, 32, 38]
    assert {source for source, _ in told} == {data.train}
