"""Every format holds the same rows, on local and on other filesystems."""

import gzip
from collections.abc import Collection, Iterator
from pathlib import Path

import fsspec
import pytest

from tests.workers.data.sources.rows import FILES, ROWS, Rows, all_columns, lines, read
from workers.config.base import InputError
from workers.data.sources.formats import ENDINGS
from workers.data.sources.record import LONGEST_LINE
from workers.data.sources.records import digest, records


@pytest.fixture
def bucket() -> Iterator[str]:
    """A filesystem that is not this machine's own, by pyarrow's name for it."""
    folder = "formats-bucket"
    yield folder
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{folder}"):
        memory.rm(f"/{folder}", recursive=True)


def put(bucket: str, name: str, content: bytes) -> str:
    fsspec.filesystem("memory").pipe(f"/{bucket}/{name}", content)
    return f"fsspec+memory://{bucket}/{name}"


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_format_holds_the_rows(name: str, tmp_path: Path, bucket: str) -> None:
    content = FILES[name](ROWS)
    (tmp_path / name).write_bytes(content)
    remote = put(bucket, name, content)
    assert read(str(tmp_path / name)) == read(remote) == ROWS
    assert digest(str(tmp_path / name)) == digest(remote)


@pytest.mark.parametrize("name", FILES)
def test_a_name_may_end_in_capitals(name: str, tmp_path: Path, bucket: str) -> None:
    content = FILES[name](ROWS)
    for called in (name.upper(), name.title()):
        (tmp_path / called).mkdir()
        (tmp_path / called / called).write_bytes(content)
        places = (tmp_path / called / called, tmp_path / called, tmp_path / called / "*")
        for source in (*map(str, places), put(bucket, called, content)):
            assert read(source) == ROWS


def only_target(where: str, names: Collection[str]) -> list[str]:
    return all_columns(where, names) and ["target"]


@pytest.mark.parametrize("name", FILES)
def test_only_wanted_columns_are_read_and_rows_have_their_places(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name](ROWS))
    found = list(records(str(tmp_path / name), only_target))
    assert [record for _, record in found] == [{"target": row["target"]} for row in ROWS]
    places = [where for where, _ in found]
    assert len(set(places)) == len(ROWS)
    assert all(where.startswith(f"{tmp_path}/{name}: ") for where in places)
    assert ": row " in places[0] or ": line " in places[0]


@pytest.mark.parametrize("name", FILES)
def test_no_more_is_read_than_is_taken(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name](ROWS))
    found = records(str(tmp_path / name), all_columns)
    assert next(found)[1] == ROWS[0]
    found.close()


def test_every_ending_is_tested() -> None:
    tested = {"." + name.partition(".")[2] for name in FILES}
    assert tested >= set(ENDINGS) - {".ndjson.gz", ".ndjson.zst", ".tsv.zst"}
    assert tested <= set(ENDINGS)


def test_a_folder_may_hold_several_formats(tmp_path: Path, bucket: str) -> None:
    kinds = ("rows.csv", "rows.jsonl", "rows.parquet", "stream.arrow")
    contents: dict[str, bytes] = {name: FILES[name](ROWS) for name in kinds}
    contents |= {"README.md": b"#", "dataset_infos.json": b"{}", "dataset_info.json": b"[]"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        put(bucket, name, content)
    for source in (str(tmp_path), f"{tmp_path}/*", f"fsspec+memory://{bucket}"):
        assert read(source) == ROWS * len(kinds), source
    assert read(f"fsspec+memory://{bucket}/rows.*") == ROWS * 3


def test_a_file_of_no_known_format_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"is of no known format by its name; allowed are \.parq"):
        read(str(tmp_path / "rows.xlsx"))
    with pytest.raises(InputError, match=r"no such file, and none matches it that ends in \.parq"):
        read(str(tmp_path))


def rows_of(count: int) -> Rows:
    return [{"prompt": f"p{at}" * 50, "target": "t" * (at % 700)} for at in range(count)]


def test_rows_larger_than_a_block_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 3_000_000, "target": "\\" * 1_100_000}, *rows_of(20)]
    for name in ("list.json", "indented.json", "open.json", "lines.json", "rows.csv"):
        (tmp_path / name).write_bytes(FILES[name](rows))
        assert read(str(tmp_path / name)) == rows, name


@pytest.mark.parametrize("name", ["indented.json", "object.json", "rows.csv", "rows.jsonl.gz"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    import tracemalloc

    (tmp_path / name).write_bytes(FILES[name](rows_of(40_000)))
    tracemalloc.start()
    try:
        count = sum(1 for _ in records(str(tmp_path / name), all_columns))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 40_000
    assert most < 12e6, "of some 20 MB"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv.gz", "a.jsonl.gz"])
def test_a_line_without_an_end_is_not_read_whole(name: str, tmp_path: Path) -> None:
    """Packed, 300 MiB of it were a file of 1 MiB."""
    import tracemalloc

    first = lines(ROWS[:1]) if "json" in name else b"prompt\n"
    content = first + b'{"prompt": "' + b"x" * (LONGEST_LINE + 30_000_000) + b'"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    del content
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=rf"{name}: line 2: is longer than 64 MiB$"):
            read(str(tmp_path / name))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3 * LONGEST_LINE


def test_lines_of_a_folder_keep_their_places(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(b"\n" + lines(ROWS[:1]))
    places = [where for where, _ in records(str(tmp_path), all_columns)]
    assert places == [f"{tmp_path}/{name}: line 2" for name in ("a.jsonl", "b.jsonl")]
