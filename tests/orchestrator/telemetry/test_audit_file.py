"""One file of the audit log: whatever comes one by one lies in few row groups."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.telemetry.audit_file import GROUP_CHARACTERS, GROUP_ROWS, AuditFile
from tests.orchestrator.rollout.traffic import answered


def groups(folder: Path) -> list[int]:
    """Rows of each row group of the only file."""
    [file] = folder.iterdir()
    metadata = pq.read_metadata(file)
    return [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]


@pytest.mark.parametrize("together", [1, 3 * GROUP_ROWS])
def test_records_share_row_groups_however_they_come(tmp_path: Path, together: int) -> None:
    """The writer's memory grows with the groups of a file, and reading with them."""
    file = AuditFile.begin(tmp_path, text=False)
    for _ in range(3 * GROUP_ROWS // together):
        file.write([answered("a")] * together)
    file.write([answered("b")])
    file.close()
    assert groups(tmp_path) == [GROUP_ROWS] * 3 + [1]
    assert file.rows == 3 * GROUP_ROWS + 1


def test_long_texts_do_not_wait_for_many_others(tmp_path: Path) -> None:
    file = AuditFile.begin(tmp_path, text=True)
    long = answered("a", prompt="x" * (GROUP_CHARACTERS // 2), answer="y")
    for _ in range(4):
        file.write([long])
    file.write([answered("b")])
    file.close()
    assert groups(tmp_path) == [2, 2, 1]
