"""A few validation rows with what a model answered to them, for people to read. No torch.

RUN/samples.json                       of the adapter, at its last evaluation
STUDY/inputs/KEY.base.samples.json     of the bare base (workers.train.evaluation.baseline)
"""

import json
from collections.abc import Iterable, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from workers.config.base import InputError, Spec, validated
from workers.run.files import write_text

LONGEST = 600
"""Characters of a text that are kept: a row may hold a book."""


class ShownRow(Protocol):
    """What is shown of a row (`workers.data.rows.Row`)."""

    @property
    def task(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def messages(self) -> Sequence[Any]: ...
    @property
    def prompt(self) -> str: ...
    @property
    def answer(self) -> str: ...


class SampledAnswer(NamedTuple):
    """To one row."""

    text: str
    score: float
    """By the row's own metric, 0 to 1."""


class Sample(Spec):
    """A row, and the answer to it."""

    task: str
    metric: str
    question: str
    whole: bool = False
    """Whether the question alone is the whole prompt: one turn, not cut."""
    expected: str
    answer: str
    score: float


def sample_rows(rows: Iterable[ShownRow], count: int) -> frozenset[int]:
    """So many rows, always the same ones: the first of every task, then the second, …"""
    tasks: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        tasks.setdefault(row.task, []).append(index)
    turns = chain.from_iterable(zip_longest(*tasks.values()))
    return frozenset(islice((index for index in turns if index is not None), count))


def sample(row: ShownRow, answer: SampledAnswer) -> Sample:
    """What is kept of a row and its answer."""
    return Sample(
        task=row.task,
        metric=row.metric,
        question=_cut(row.prompt),
        whole=len(row.messages) == 1 and len(row.prompt) <= LONGEST,
        expected=_cut(row.answer),
        answer=_cut(answer.text),
        score=answer.score,
    )


def samples_beside(figures: Path) -> Path:
    """The bare base's samples, beside the file of its figures."""
    return figures.with_suffix(".samples.json")


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write them, if there are any."""
    if samples:
        told = [one.model_dump(mode="json") for one in samples]
        write_text(path, json.dumps(told, ensure_ascii=False, indent=2) + "\n")


def read_samples(path: Path) -> list[Sample]:
    """What was written there; nothing where there is no such file, or none that can be read: they
    are for people, and nothing rests on them."""
    try:
        return [validated(Sample, one, str(path)) for one in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError, InputError):
        return []


def _cut(text: str) -> str:
    """Both ends of a long text: what is asked may stand at either."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} … {text[-half:]}"
