"""Sources: every format and way to name one, and a clear line for each way to be wrong."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.sources.records import (
    data_digest,
    digest,
    listing_digest,
    records,
    size,
    streamed_records,
)

ROWS = [{"prompt": f"p{i}", "target": f"t{i}", "other": i} for i in range(5)]


def read(source: str) -> list[dict[str, Any]]:
    return [dict(record) for _, record in records(source, lambda _, names: sorted(names))]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_parquet_jsonl_and_gzip_hold_the_same(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    text = write_jsonl(tmp_path / "b.jsonl", ROWS).read_bytes()
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(text))
    for name in ("a.parquet", "b.jsonl", "c.jsonl.gz"):
        assert read(str(tmp_path / name)) == ROWS, name


def test_the_digest_of_a_run_is_of_all_its_sources(tmp_path: Path) -> None:
    a, b, v = (
        str(write_jsonl(tmp_path / f"{name}.jsonl", rows))
        for name, rows in (("a", ROWS[:2]), ("b", ROWS[2:4]), ("v", ROWS[4:]))
    )

    def of(train: Any) -> str:
        return data_digest(DataSpec(train=train, validation=v))

    assert of([a]) == of(a)
    assert len({of(a), of(b), of([a, b]), of([b, a])}) == 4
    before = of([a, b])
    write_jsonl(Path(b), ROWS)
    assert of([a, b]) != before


def test_globs_folders_and_uris_take_files_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    for name, rows in (("parts/1", ROWS[:2]), ("parts/2", ROWS[2:4]), ("parts/deep/3", ROWS[4:])):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    (tmp_path / "parts" / "README.md").write_text("not data")
    monkeypatch.chdir(tmp_path)
    for source in ("parts", "parts/*.parquet", "parts/?.parquet", f"file://{tmp_path}/parts"):
        assert read(source) == ROWS[:4], source
    assert read("parts/**/*.parquet") == ROWS


def test_a_name_with_a_globs_marks_is_that_file_or_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run[1]"
    folder.mkdir()
    path = write_jsonl(folder / "rows[a].jsonl", ROWS)
    for source in (path, folder):
        assert read(str(source)) == ROWS


def test_only_the_wanted_columns_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    write_jsonl(tmp_path / "b.jsonl", ROWS)
    for name in ("a.parquet", "b.jsonl"):
        found = list(records(str(tmp_path / name), lambda _, names: ["target"]))
        assert [record for _, record in found] == [{"target": row["target"]} for row in ROWS]
    assert found[2][0].endswith("b.jsonl: line 3")


def test_a_hub_name_goes_through_datasets(tmp_path: Path) -> None:
    # A local folder is a hub name to `datasets`: the same code path, without a network.
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "train.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), tmp_path / "test.parquet")
    assert read(f"hub:{tmp_path}") == ROWS
    assert read(f"hub:{tmp_path}#test") == ROWS[:2]
    assert len({digest(f"hub:{tmp_path}"), digest(f"hub:{tmp_path}#test")}) == 2
    with pytest.raises(InputError, match=r"cannot be loaded from the hub: .*nosplit"):
        read(f"hub:{tmp_path}#nosplit")


def test_a_listing_is_of_names_sizes_and_times(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ROWS)
    sources = (str(folder), f"hub:{folder}")
    before = [listing_digest(source) for source in sources]
    assert before == [listing_digest(source) for source in sources]
    os.utime(folder / "train.jsonl", ns=(1, 1))
    touched = [listing_digest(source) for source in sources]
    write_jsonl(folder / "more.jsonl", ROWS)
    longer = listing_digest(sources[0])
    assert len({*before, *touched, longer}) == 5
    assert size(sources[0]) == sum(one.stat().st_size for one in folder.iterdir())
    assert size(sources[1]) is None
    with pytest.raises(InputError, match=r"^hub:nobody/nothing: cannot be loaded"):
        listing_digest("hub:nobody/nothing")


def test_streamed_records_are_those_of_the_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    for source in (str(tmp_path), f"hub:{tmp_path}"):
        found = list(streamed_records(source, lambda _, names: ["target"]))
        assert [record for _, record in found] == [{"target": row["target"]} for row in ROWS]
        assert "3" in found[2][0]
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "target": "b"}\n{"prompt": ')
    with pytest.raises(InputError, match=r"^hub:.*: row \d: cannot be read: "):
        list(streamed_records(f"hub:{tmp_path}", lambda _, names: ["target"]))


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^hub:nobody/nothing: cannot be loaded") as caught:
        read("hub:nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "\\ud800"}\n', "surrogate pair"),
        (b'{"a": 1, "a": 2}\n', "specified twice"),
        (b'{"a": ' + b"[" * 100_000, "Invalid value"),
        (b"", "StopIteration"),
    ],
)
def test_files_of_a_hub_that_cannot_be_read_say_why(
    tmp_path: Path, content: bytes, message: str
) -> None:
    """Of most, `datasets` itself says that an error occurred."""
    (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=f"cannot be loaded from the hub: .*{message}") as caught:
        read(f"hub:{tmp_path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.parquet", None, "no such file"),
        ("absent/*.jsonl", None, "no such file"),
        ("data.xlsx", b"a,b", "is of no known format by its name; allowed are "),
        ("bad.parquet", b"PAR1 this is none PAR1", "cannot be read as Parquet"),
        ("empty.parquet", b"", "cannot be read as Parquet"),
        ("bad.jsonl", b'{"a": 1}\n{"a": \n', "line 2: is no JSON"),
        ("list.jsonl", b"[1, 2]\n", "line 1: must be a JSON object"),
        ("binary.jsonl", b"\xff\xfe\x00", "line 1: is no UTF-8"),
        ("latin.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "line 2: is no UTF-8"),
        ("utf16.jsonl", '{"a": 1}\n'.encode("utf-16"), "line 1: is no UTF-8"),
        ("null.jsonl", b"null\n", "line 1: must be a JSON object"),
        ("twice.jsonl", b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}', "line 2: .*'a' is there twice"),
        ("inner.jsonl", b'{"a": [{"b": 1, "b": 2}]}', "line 1: .*'b' is there twice"),
        ("digits.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r"line 1: is no JSON: .*4300 digits"),
        ("deep.jsonl", b'{"a": ' + b"[" * 100_000, "line 1: .*nests too deep"),
        ("pairs.jsonl", b'{"a": ' * 100_000, "line 1: .*nests too deep"),
        ("broken.jsonl.gz", b"no gzip", "cannot be read as JSON lines"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path: Path) -> None:
    """Also in the middle: of files that were put one behind the other."""
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"a": 1}\r\n\xef\xbb\xbf{"a": "\xef\xbb\xbf"}\r\n'
    )
    assert read(str(tmp_path / "a.jsonl")) == [{"a": 1}, {"a": "\ufeff"}]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([["p"], ["t"], ["u"]], names=["prompt", "target", "target"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: has two columns 'target'$"):
        read(str(tmp_path / "a.parquet"))


def test_a_column_whose_name_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["p"], "zzzz": ["t"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"zzzz", b"zz\xffz"))
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as Parquet: .*utf-8"):
        read(str(path))


def not_utf8() -> pa.Array:
    """Texts of which the third is none."""
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3)))
    return pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"ab\xff"))


def test_a_value_that_python_cannot_hold_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    for path in (tmp_path / "a.parquet", tmp_path / "hub" / "train.parquet"):
        pq.write_table(pa.table({"a": not_utf8()}), path)
    for source in (str(tmp_path / "a.parquet"), f"hub:{tmp_path / 'hub'}"):
        with pytest.raises(InputError, match=r"row 3: cannot be read: .*utf-8") as caught:
            read(source)
        assert str(caught.value).startswith(source)
        assert "\n" not in str(caught.value)


def test_a_parquet_file_cut_anywhere_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS * 1000), path, compression="zstd")
    whole = path.read_bytes()
    cut = whole[: len(whole) // 2]
    hollow = whole[:8] + bytes(len(whole) // 2) + whole[8 + len(whole) // 2 :]
    for content in (cut, whole[:-8], hollow):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.parquet: cannot be read as Parquet") as caught:
            read(str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["nosuch://bucket/x.parquet", "s3:/x.parquet"])
def test_a_filesystem_that_is_not_there_is_one_line(source: str) -> None:
    with pytest.raises(InputError) as caught:
        read(source)
    assert source in str(caught.value)


def test_the_digest_follows_the_bytes(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", ROWS)
    same = write_jsonl(tmp_path / "b.jsonl", ROWS)
    assert digest(str(first)) == digest(str(same))
    write_jsonl(same, ROWS[:4])
    assert digest(str(first)) != digest(str(same))
    assert digest(str(tmp_path)) != digest(str(first))


def test_the_home_of_nobody_is_one_line() -> None:
    with pytest.raises(InputError, match=r"~nosuchuser/b\.jsonl: no such file"):
        read("~nosuchuser/b.jsonl")
