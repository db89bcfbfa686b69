"""What encoding did to rows, added up and said."""

from workers.data.counts import RowCounts


def test_rows_by_layout_add_up_and_are_said() -> None:
    counts = RowCounts("rows.json", rows=3, layouts={"Alpaca": 2})
    counts.merge(RowCounts("rows.json", rows=2, layouts={"ShareGPT": 1, "Alpaca": 1}))
    assert counts.layouts == {"Alpaca": 3, "ShareGPT": 1}
    assert "rows.json: 5 rows, 3 read as Alpaca, 1 read as ShareGPT, none is cut" in str(counts)
    assert "5 rows, read as Alpaca, none" in str(RowCounts("r", rows=5, layouts={"Alpaca": 5}))
    assert "read as" not in str(RowCounts("r", rows=5))
