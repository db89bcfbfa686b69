"""What of a stream is looked at before a run, and what a window leaves on the disk."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.encode import Encoder
from workers.data.sources.records import SourceDigests
from workers.data.store.token_store import TokenStore
from workers.data.streaming.windows import Place, StreamReader, looked_at


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def encoder(tokenizer: PreTrainedTokenizerBase, folder: Path, rows: int, **more: Any) -> Encoder:
    path = folder / "rows.jsonl"
    lines = [
        {"prompt": f"{row:03d}", "target": "<|im_end|>" if row == 7 else "t"} for row in range(rows)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    data = {"train": str(path), "validation": str(path), "template": "plain", "streaming": True}
    return Encoder(tokenizer, DataSpec.model_validate(data | more))


def test_a_short_stream_is_looked_at_as_a_store_would(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    streamed = looked_at(encoder(tokenizer, tmp_path, 20))
    stored = TokenStore(encoder(tokenizer, tmp_path, 20, streaming=False)).training()
    assert [tuple(one.ids) for one in streamed.examples] == [
        tuple(one.ids) for one in stored.examples
    ]
    assert streamed.counts.as_dict() | {"source": ""} == stored.counts.as_dict() | {"source": ""}
    assert streamed.counts.control_tokens == 1
    assert streamed.counts.source == stored.counts.source + ", streamed"


def test_a_long_stream_is_not_read_to_its_end(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    some = encoder(tokenizer, tmp_path, 40, streaming_buffer=30)
    with Path(some.data.sources[0].source).open("a") as file:
        file.write("this is no JSON\n")
    assert looked_at(some).counts.rows == 30
    with pytest.raises(InputError, match="line 41"):
        looked_at(encoder_of(some, streaming_buffer=50))


def encoder_of(some: Encoder, **more: Any) -> Encoder:
    return Encoder(some.tokenizer, some.data.model_copy(update=more))


def test_a_window_has_no_name_on_the_disk_and_none_is_kept(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, cache: Path
) -> None:
    some = encoder(tokenizer, tmp_path, 10, streaming_buffer=6)
    noted = SourceDigests.of(some.data).listings
    reader = StreamReader(some, 0, noted, Place())
    first, second = reader.next(99), reader.next(99)
    assert (first.start, first.end) == (Place(), Place(0, 6))
    assert (second.start, second.end) == (Place(0, 6), Place(1, 2, 10))
    assert len(first.source.examples) == len(second.source.examples) == 6
    assert not list((cache / "rows").iterdir())


def test_where_nothing_can_be_written_that_is_said(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOETUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written"):
        looked_at(encoder(tokenizer, tmp_path, 3))
