"""The demo's data: requests to a smart home, and what a product in daily use makes of them.

Five tasks: the intent and slots of a request in English, German and Spanish, the area that it
speaks of, and the product's reply. Validation and test have sentence templates that training
never sees, and no request of theirs comes in training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from pathlib import Path
from random import Random
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq
from hassil.recognize import RecognizeResult

from orchestrator.demo.calls import Call
from orchestrator.demo.replies import reply
from orchestrator.demo.sentences import Grammar, Template, Unsayable, grammar
from orchestrator.demo.split import SPLITS, templates_of
from workers.config.base import InputError


@dataclass(frozen=True)
class DemoTask:
    """One task of the data set."""

    language: str
    instruction: str
    metric: str
    weight: float
    """Share of the training rows; validation and test have the same number of each task."""


# slot_f1 for intents: it tells half-right answers (intent right, one slot wrong) from wrong ones,
# which separates trials long before answers are exactly right; `check` tells the latter.
TASKS = MappingProxyType(
    {
        "intent": DemoTask("en", "Call the intent for this request:", "slot_f1", 0.4),
        "area": DemoTask("en", "Name the area in this request:", "exact_match", 0.15),
        "reply": DemoTask("en", "Reply to this request:", "rouge_l", 0.15),
        "intent_de": DemoTask("de", "Call the intent for this German request:", "slot_f1", 0.15),
        "intent_es": DemoTask("es", "Call the intent for this Spanish request:", "slot_f1", 0.15),
    }
)
NO_AREA = "none"


@dataclass(frozen=True)
class AnswerCheck:
    """Whether an answer to a request is right."""

    expected: Call | None
    """What the product understands; None if it does not understand the request."""
    intent: bool
    slots: bool

    @property
    def right(self) -> bool:
        """The answer would do exactly what was asked for."""
        return self.intent and self.slots


def prompt(task: str, request: str) -> str:
    """The prompt of a request, as in the data set."""
    return f"{TASKS[task].instruction} {request}"


def check(request: str, answer: str, language: str = "en") -> AnswerCheck:
    """Parse the request back and compare the answer's intent and slots with what it says."""
    understood = grammar(language).understand(request)
    expected, found = Call.of(understood) if understood else None, Call.read(answer)
    if expected is None or found is None:
        return AnswerCheck(expected, intent=False, slots=False)
    return AnswerCheck(expected, expected.intent == found.intent, expected.same_slots(found))


def target(task: str, request: str) -> str | None:
    """The right answer to a request; None if the product does not understand it, or if its reply
    tells what needs to be seen."""
    home = grammar(TASKS[task].language)
    understood = home.understand(request)
    return _target(task, home, understood) if understood else None


def make(
    folder: str | Path, seed: int = 0, *, train: int = 1500, validation: int = 100, test: int = 150
) -> Path:
    """Write train.parquet, validation.parquet and test.parquet into `folder`, and return it.

    The same seed and sizes make the same rows.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    taken: dict[tuple[str, str], str] = {}
    for split, size in zip(SPLITS, (train, validation, test), strict=True):
        rows = [
            row
            for task, count in _counts(split, size).items()
            for row in _rows(task, split, count, seed, taken)
        ]
        Random(f"{seed}/{split}").shuffle(rows)  # noqa: S311 (a data set, not a secret)
        partial = folder / f".{split}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), partial, compression="zstd")
        partial.replace(folder / f"{split}.parquet")
    return folder


def _counts(split: str, size: int) -> dict[str, int]:
    """Rows of each task; they add up to `size`."""
    weights = [task.weight if split == "train" else 1 / len(TASKS) for task in TASKS.values()]
    ends = [round(size * end) for end in accumulate(weights)]
    return {task: end - start for task, start, end in zip(TASKS, [0, *ends], ends, strict=False)}


def _rows(
    task: str, split: str, count: int, seed: int, taken: dict[tuple[str, str], str]
) -> Iterator[dict[str, str]]:
    """Rows of one task. `taken` says in which split a request is already, over all tasks."""
    language = TASKS[task].language
    random = Random(f"{seed}/{task}/{split}")  # noqa: S311
    by_intent = templates_of(language, split, seed)
    intents = sorted(by_intent)
    weights = [sqrt(len(by_intent[intent])) for intent in intents]
    asked: set[str] = set()
    for _ in range(200 * count):
        if len(asked) == count:
            return
        template = random.choice(by_intent[random.choices(intents, weights)[0]])
        answered = _answer(task, template, random)
        if answered is None:
            continue
        request, target = answered
        if request in asked or taken.setdefault((language, request.casefold()), split) != split:
            continue
        asked.add(request)
        yield {
            "id": f"{task}-{split}-{len(asked):04d}",
            "task": task,
            "metric": TASKS[task].metric,
            "prompt": prompt(task, request),
            "target": target,
            "template": f"{language}: {template.text}",
            "request": request,
            "language": language,
        }
    if len(asked) < count:
        raise InputError(f"{task}: there are not {count} different requests for {split}")


def _answer(task: str, template: Template, random: Random) -> tuple[str, str] | None:
    """A request and its target; None where the template gives none for this task."""
    home = grammar(TASKS[task].language)
    # Most templates name no area: keep a part of those, so that `none` is one answer of many.
    if task == "area" and "{area}" not in template.text and random.random() > 0.2:
        return None
    try:
        request = home.say(template, random)
    except Unsayable:
        return None
    understood = home.understand(request)
    if understood is None or understood.intent.name != template.intent:
        return None  # ambiguous, or beyond the product's own parser
    text = _target(task, home, understood)
    return (request, text) if text else None


def _target(task: str, home: Grammar, understood: RecognizeResult) -> str | None:
    if task == "reply":
        return reply(home, understood)
    call = Call.of(understood)
    return call.slots.get("area", NO_AREA) if task == "area" else str(call)
