"""Parquet and Arrow: batches, columns, and what is wrong with them."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.workers.data.sources.rows import FILES, ROWS, read
from workers.config.base import InputError
from workers.data.sources.records import records


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
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as f,
    ):
        f.write_table(table)
    with pytest.raises(InputError, match=r"a\.arrow: has two columns 'target'$"):
        read(str(tmp_path / "a.arrow"))


def test_a_value_that_python_has_no_like_of_has_its_row(tmp_path: Path) -> None:
    """In Arrow as in Parquet."""
    bad = pa.array([b"ok", b"\xff"]).cast(pa.binary()).view(pa.string())
    table = pa.table({"prompt": bad})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as f,
    ):
        f.write_table(table)
    with pytest.raises(InputError, match=r"a\.arrow: row 2: cannot be read"):
        read(str(tmp_path / "a.arrow"))
