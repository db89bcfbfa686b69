"""Parquet and Arrow: batches, columns, and what is wrong with them."""

import tracemalloc
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pytest

from tests.workers.data.sources.rows import FILES, ROWS, read
from workers.config.base import InputError
from workers.data.sources.records import records


def in_one_batch(table: pa.Table) -> bytes:
    """An Arrow file."""
    sink = BytesIO()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    return sink.getvalue()


@pytest.mark.parametrize("name", ["file.arrow", "stream.arrow", "rows.feather", "rows.parquet"])
def test_columns_come_by_name_in_the_order_that_is_asked_for(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name](ROWS))
    found = records(str(tmp_path / name), lambda *_: ["target", "prompt"])
    assert [list(record.items()) for _, record in found] == [
        [("target", row["target"]), ("prompt", row["prompt"])] for row in ROWS
    ]


@pytest.mark.parametrize("name", ["file.arrow", "stream.arrow", "rows.parquet"])
@pytest.mark.parametrize("kept", [0, 3, 20, -30])
def test_a_file_that_is_cut_off_is_one_line(tmp_path: Path, name: str, kept: int) -> None:
    (tmp_path / name).write_bytes(FILES[name](ROWS)[:kept])
    with pytest.raises(InputError, match=rf"{name}: cannot be read as ") as caught:
        read(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_an_arrow_file_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    table = pa.table([["p"], ["t"], ["u"]], names=["prompt", "target", "target"])
    (tmp_path / "a.arrow").write_bytes(in_one_batch(table))
    with pytest.raises(InputError, match=r"a\.arrow: has two columns 'target'$"):
        read(str(tmp_path / "a.arrow"))


def test_a_value_that_python_has_no_like_of_has_its_row(tmp_path: Path) -> None:
    """In Arrow as in Parquet."""
    bad = pa.array([b"ok", b"\xff"]).cast(pa.binary()).view(pa.string())
    table = pa.table({"prompt": bad})
    (tmp_path / "a.arrow").write_bytes(in_one_batch(table))
    with pytest.raises(InputError, match=r"a\.arrow: row 2: cannot be read"):
        read(str(tmp_path / "a.arrow"))


@pytest.mark.parametrize("batches", [1, 2])
def test_a_stream_that_is_cut_off_behind_a_batch_is_one_line(tmp_path: Path, batches: int) -> None:
    """Arrow reads a shorter one."""
    table, sink = pa.Table.from_pylist(ROWS), BytesIO()
    writer = pa.ipc.new_stream(sink, table.schema)
    for batch in table.to_batches(max_chunksize=2)[:batches]:
        writer.write_batch(batch)
    (tmp_path / "cut.arrow").write_bytes(sink.getvalue())
    with pytest.raises(InputError, match=r"cut\.arrow: cannot be read as Arrow: it is cut off"):
        read(str(tmp_path / "cut.arrow"))


def test_a_stream_of_old_arrow_is_read(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    options = pa.ipc.IpcWriteOptions(use_legacy_format=True)
    with (
        pa.OSFile(str(tmp_path / "old.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table)
    assert read(str(tmp_path / "old.arrow")) == ROWS


def test_of_a_batch_that_is_the_file_some_rows_are_objects_at_a_time(tmp_path: Path) -> None:
    rows = [{"prompt": f"{at}" * 60, "target": "t"} for at in range(30_000)]
    (tmp_path / "one.arrow").write_bytes(in_one_batch(pa.Table.from_pylist(rows)))
    tracemalloc.start()
    try:
        found = records(str(tmp_path / "one.arrow"), lambda _, names: sorted(names))
        places = [where for where, row in found if row["prompt"] == "29999" * 60]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert places == [f"{tmp_path}/one.arrow: row 30000"]
    assert most < 3e6, "of some 18 MB"
