"""A loss or a metric has its name in its table only; others take it from there."""

import ast
from pathlib import Path

import pytest

from workers.config.losses import AUXILIARY
from workers.config.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("cluster", "search_spaces", "workers", "orchestrator")
TABLES = ("workers/config/losses.py", "workers/config/metrics.py")
NAMES = {
    *AUXILIARY,
    *(loss.weight_field for loss in AUXILIARY.values()),
    *(path for path in METRICS if "/" in path),  # epoch and step are words of their own
    *(f"train/{name}" for name in AUXILIARY),
}
FILES = sorted(
    str(file.relative_to(ROOT)) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")
)


def named(source: str) -> set[str]:
    """Those that stand in a source as a string of their own."""
    constants = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {one.value for one in constants if isinstance(one.value, str)} & NAMES


@pytest.mark.parametrize("file", [name for name in FILES if name not in TABLES])
def test_no_file_but_the_tables_names_a_loss_or_a_metric(file: str) -> None:
    assert named((ROOT / file).read_text()) == set()


def test_a_name_in_a_string_is_found() -> None:
    assert named('if loss == "z_loss": pass') == {"z_loss"}
    assert named('METRIC = "validation/loss"  # validation/score') == {"validation/loss"}
    assert named('"""About z_loss and train/loss."""') == set()
