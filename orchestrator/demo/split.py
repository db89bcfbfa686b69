"""Which sentence templates belong to training, validation and test."""

from functools import cache
from random import Random

from orchestrator.demo.sentences import Template, grammar

INTENTS = frozenset(
    (
        "HassTurnOn",
        "HassTurnOff",
        "HassLightSet",
        "HassClimateSetTemperature",
        "HassClimateGetTemperature",
        "HassSetPosition",
        "HassFanSetSpeed",
        "HassGetState",
        "HassSetVolume",
        "HassMediaPause",
        "HassMediaUnpause",
        "HassMediaNext",
        "HassVacuumStart",
        "HassVacuumReturnToBase",
        "HassVacuumCleanArea",
        "HassLawnMowerStartMowing",
        "HassLawnMowerDock",
        "HassStartTimer",
        "HassCancelTimer",
        "HassShoppingListAddItem",
        "HassGetWeather",
        "HassGetCurrentTime",
    )
)
"""What is asked of a home every day; the package has 42 intents."""

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.15
"""Share of each intent's sentence templates that validation gets, and test as many."""


@cache
def templates_of(language: str, split: str, seed: int) -> dict[str, list[Template]]:
    """The templates of a split by intent. Equal texts go to the same split, whatever the intent."""
    found: dict[str, dict[str, list[Template]]] = {}
    owner: dict[str, str] = {}
    for template in grammar(language).templates(INTENTS):
        intent = owner.setdefault(template.text, template.intent)
        found.setdefault(intent, {}).setdefault(template.text, []).append(template)
    chosen: dict[str, list[Template]] = {}
    for intent, texts in found.items():
        order = sorted(texts)
        Random(f"{seed}/{language}/{intent}").shuffle(order)  # noqa: S311
        for text in _cut(order, split):
            for template in texts[text]:
                chosen.setdefault(template.intent, []).append(template)
    return chosen


def _cut(order: list[str], split: str) -> list[str]:
    """A split's part of an intent's templates; with fewer than four, all go to training."""
    held_out = max(round(len(order) * HELD_OUT), 1) if len(order) >= 4 else 0
    parts = {
        "validation": order[:held_out],
        "test": order[held_out : 2 * held_out],
        "train": order[2 * held_out :],
    }
    return parts[split]
