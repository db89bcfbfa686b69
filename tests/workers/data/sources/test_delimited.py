"""CSV and TSV: quoting, marks, empty cells, and the line of what is wrong."""

from pathlib import Path

import pytest

from tests.workers.data.sources.rows import read
from workers.config.base import InputError


def test_cells_are_text_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        '\ufeffprompt,"the target",n\n"a ""b"", c\nd",x,3.0\n\n , ,\n', encoding="utf-8"
    )
    (tmp_path / "a.tsv").write_text("prompt\tthe target\tn\na,b\t\t007\r\n")
    assert read(str(tmp_path / "a.csv")) == [
        {"n": "3.0", "prompt": 'a "b", c\nd', "the target": "x"},
        {"n": "", "prompt": " ", "the target": " "},
    ]
    assert read(str(tmp_path / "a.tsv")) == [{"n": "007", "prompt": "a,b", "the target": ""}]


def test_a_cell_may_be_a_long_document(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\n" + "x" * 400_000)
    assert read(str(tmp_path / "a.csv")) == [{"prompt": "x" * 400_000}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "its first line must name the columns"),
        (b"\n\n", "its first line must name the columns"),
        (b"a,b,a\n1,2,3\n", "has two columns 'a'"),
        (b"a,b\n1,2\n1\n", "line 3: has 1 cells, but the first line names 2 columns"),
        (b'a,b\n"1\n2",2\n1,2,3\n', "line 4: has 3 cells, but the first line names 2 columns"),
        (b'a,b\n1,"x" y\n', "line 2: cannot be read: "),
        (b'a,b\n1,2\n3,"x\n', "line 3: cannot be read: unexpected end of data"),
        (b"a\nx\n\xe9\n", "line 3: is no UTF-8"),
        ("a\nx\n".encode("utf-16"), "line 1: is no UTF-8"),
        (b"a\rb\rc", "cannot be read: new-line character"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read(str(tmp_path / "a.csv"))
    assert "\n" not in str(caught.value)
    assert "a.csv" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_an_empty_tsv_is_no_csv(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tsv: cannot be read as TSV: its first line must"):
        read(str(tmp_path / "a.tsv"))


def test_a_packed_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"a\.csv\.gz: cannot be read as CSV"):
        read(str(tmp_path / "a.csv.gz"))
