"""Example questions: out of a version's own rows, only as many as an operator lets out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.config.serve import ServeSpec
from orchestrator.gateway.examples import Examples
from orchestrator.registry.registry import Registry
from workers.run.samples import Sample, write_samples


@pytest.fixture
def registry(store: str, tmp_path: Path) -> Registry:
    return Registry(store, tmp_path)


@pytest.mark.parametrize(
    ("trial", "count", "expected"),
    [
        (3, 9, ["one", "two"]),
        (3, 1, ["one"]),
        (3, 0, []),
        (4, 9, []),
        (None, 9, []),
    ],
)
def test_questions_are_those_that_the_versions_trial_left(
    registry: Registry,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    trial: int | None,
    count: int,
    expected: list[str],
) -> None:
    folder = tmp_path / "studies" / "home" / "trials" / "T003"
    folder.mkdir(parents=True)
    row = {"task": "t", "metric": "m", "expected": "e", "answer": "a", "score": 1}
    asked = [("cut …", False), ("one", True), ("one", True), ("two", True)]
    samples = [Sample(**row, question=text, whole=whole) for text, whole in asked]
    write_samples(folder / "samples.json", samples)
    version = registry.register("home", trial, make_adapter(81), {})
    assert Examples(registry, tmp_path, count).of(version.id) == expected


def test_nobody_is_told_rows_unless_the_operator_says_so() -> None:
    assert ServeSpec().examples == 0
