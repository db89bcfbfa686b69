"""Which rows each step took, where `data.record_rows` asks for it. Readable without torch.

rows.jsonl  {"step", "workers": [[row, …] of each worker]}, a line for each step; a step that was
            taken again after a failure has a line each time, and the last one counts
"""

import json
from collections.abc import Sequence
from pathlib import Path


def note_rows(folder: Path, step: int, by_worker: Sequence[Sequence[int]]) -> None:
    """Add the rows (numbers from 0 among the training rows that are kept) of a step (from 0)."""
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "workers": by_worker}) + "\n")


def read_rows(folder: Path) -> dict[int, list[list[int]]]:
    """By step, the rows of each worker that went into the parameters."""
    lines = (folder / "rows.jsonl").read_text().splitlines()
    return {line["step"]: line["workers"] for line in map(json.loads, lines)}
