"""What the demo asks at its end: of the kinds of question that validation shows its champion can
answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from orchestrator.demo.smart_home import TASKS, check, prompt, target
from workers.config.metrics import VALUE

REQUESTS = MappingProxyType(
    {
        "area": "how warm is it in the guest room",
        "intent": "please switch the desk lamp in the office on",
        "reply": "turn on the lights in the kitchen",
        "intent_es": "qué hora es",
        "intent_de": "wie spät ist es",
    }
)
"""One for each task, in words that no training row has."""
ASKED = 3


@dataclass(frozen=True)
class DemoQuestion:
    """One question, and how good its kind is answered."""

    task: str
    value: float | None = None
    """By the task's metric on the validation rows; None where nobody has measured it."""
    rows: int = 0
    """So many they were."""

    @property
    def prompt(self) -> str:
        """As it is asked."""
        return prompt(self.task, REQUESTS[self.task])

    @property
    def kind(self) -> str:
        """What it is of, and how far its kind can be trusted."""
        if self.value is None:
            return self.task
        metric = TASKS[self.task].metric
        return f"{self.task}: {metric} {self.value:.2f} on {self.rows} validation rows"

    def verdict(self, answer: str) -> str:
        """Whether an answer is right, or what would be."""
        request, language = REQUESTS[self.task], TASKS[self.task].language
        wanted = target(self.task, request) or ""
        if self.task.startswith("intent"):
            right = check(request, answer, language).right
        else:
            right = answer.strip().casefold() == wanted.casefold()
        return "right" if right else f"wrong: {wanted}"


def questions(tasks: Mapping[str, Mapping[str, Any]]) -> Sequence[DemoQuestion]:
    """Of the tasks with the best values, the best one first, given what validation reports of each;
    where it has no values, of the first tasks."""
    found = [
        DemoQuestion(task, entry.get(VALUE), entry["rows"])
        for task in REQUESTS
        if (entry := tasks.get(task))
    ]
    return sorted(found, key=lambda one: -(one.value or 0.0))[:ASKED]
