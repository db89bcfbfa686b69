"""Say and understand the product's sentences: `home-assistant-intents` has the templates, `hassil`
reads them.

hassil's own sampler enumerates every sentence of a template in a fixed order; here the expression
tree is walked at random instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from hassil.expression import (
    Alternative,
    Expression,
    Group,
    ListReference,
    Permutation,
    RuleReference,
    Sentence,
    TextChunk,
)
from hassil.intents import (
    IntentData,
    Intents,
    RangeSlotList,
    RangeType,
    SlotList,
    TextSlotList,
    WildcardSlotList,
)
from hassil.recognize import RecognizeResult, recognize_best
from hassil.util import normalize_whitespace
from home_assistant_intents import get_intents

from orchestrator.demo.home import HOMES, Home


@dataclass(frozen=True, eq=False)
class Template:
    """One sentence template of an intent."""

    intent: str
    text: str
    """The template as the package writes it; equal texts are one phrasing."""
    data: IntentData
    sentence: Sentence


class Unsayable(Exception):  # noqa: N818 (a template's property, not an error)
    """A template asks for words that the home has none for."""


@dataclass(frozen=True)
class Grammar:
    """The sentences of one language, with our home's rooms and devices."""

    intents: Intents
    lists: Mapping[str, SlotList]
    home: Home
    replies: Mapping[str, Mapping[str, str]]
    """Jinja templates of the product's replies, by intent and kind."""

    def templates(self, intents: frozenset[str]) -> list[Template]:
        """Templates that need no context but a device's domain."""
        return [
            Template(name, sentence.text or "", data, sentence)
            for name, intent in self.intents.intents.items()
            if name in intents
            for data in intent.data
            if data.requires_context.keys() <= {"domain"}
            for sentence in data.sentences
        ]

    def say(self, template: Template, random: Random) -> str:
        """One sentence of a template; raises Unsayable."""
        walk = _Walk(self, template.data, random)
        return str(normalize_whitespace(walk.text(template.sentence.expression))).strip()

    def understand(self, request: str) -> RecognizeResult | None:
        """What the product makes of a request; None if it understands nothing."""
        return recognize_best(
            request, self.intents, slot_lists=dict(self.lists), best_slot_name="name"
        )


@lru_cache(maxsize=len(HOMES))
def grammar(language: str) -> Grammar:
    """The grammar of `en`, `de` or `es`."""
    package: Any = get_intents(language)
    home = HOMES[language]
    devices = [
        (name, name, {"domain": domain}) for domain, names in home.devices.items() for name in names
    ]
    lists: dict[str, SlotList] = {
        "name": TextSlotList.from_tuples(devices, name="name"),
        "area": TextSlotList.from_strings(home.areas, name="area"),
        "floor": TextSlotList.from_strings(home.floors, name="floor"),
    }
    return Grammar(Intents.from_dict(package), lists, home, package["responses"]["intents"])


@dataclass(frozen=True)
class _Walk:
    """One random walk through a template's expression tree."""

    grammar: Grammar
    data: IntentData
    random: Random

    def text(self, expression: Expression) -> str:
        if isinstance(expression, TextChunk):
            return str(expression.original_text)
        if isinstance(expression, Alternative):
            return self.text(self.random.choice(expression.items))
        if isinstance(expression, Permutation):
            items = self.random.sample(expression.items, len(expression.items))
            return " ".join(map(self.text, items))
        if isinstance(expression, Group):
            return "".join(map(self.text, expression.items))
        if isinstance(expression, RuleReference):
            rules = {**self.grammar.intents.expansion_rules, **self.data.expansion_rules}
            return self.text(rules[expression.rule_name].expression)
        if isinstance(expression, ListReference):
            return self._value(expression.list_name)
        raise Unsayable(type(expression).__name__)

    def _value(self, name: str) -> str:
        lists = {**self.grammar.intents.slot_lists, **self.data.slot_lists, **self.grammar.lists}
        values = lists.get(name)
        if isinstance(values, TextSlotList):
            domains = self.data.requires_context.get("domain")
            fitting = [
                value.text_in
                for value in values.values
                if not (domains and value.context) or value.context["domain"] in domains
            ]
            return self.text(self._one_of(fitting, name))
        if isinstance(values, RangeSlotList):
            return str(self.random.choice(_numbers(values)))
        if isinstance(values, WildcardSlotList):
            words = {
                "shopping_list_item": self.grammar.home.groceries,
                "timer_name": self.grammar.home.timers,
            }
            return str(self._one_of(words.get(name, ()), name))
        raise Unsayable(name)

    def _one_of(self, values: Any, name: str) -> Any:
        if not values:
            raise Unsayable(name)
        return self.random.choice(values)


def _numbers(values: RangeSlotList) -> list[int]:
    """Numbers that people say: comfortable temperatures, and multiples of five."""
    if values.type is RangeType.TEMPERATURE:
        return list(range(16, 27))
    numbers = range(values.start, values.stop + 1, values.step)
    return [number for number in numbers if number % 5 == 0]
