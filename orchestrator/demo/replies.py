"""The product's reply to a request, from the package's own reply templates."""

from functools import lru_cache
from typing import Any

from hassil.recognize import RecognizeResult
from jinja2.sandbox import SandboxedEnvironment

from orchestrator.demo.calls import Call
from orchestrator.demo.sentences import Grammar

# Their replies tell the time, the weather or a device's state, which no request holds.
WITHOUT_REPLY = frozenset(
    {"HassGetState", "HassGetWeather", "HassGetCurrentTime", "HassClimateGetTemperature"}
)


def reply(grammar: Grammar, understood: RecognizeResult) -> str | None:
    """What the product says when it has done what was asked for; None if that needs to be seen."""
    intent = understood.intent.name
    source = grammar.replies.get(intent, {}).get(understood.response or "default")
    if intent in WITHOUT_REPLY or not source:
        return None
    slots = Call.of(understood).slots
    state = {"domain": _domain(grammar, slots)}
    text = " ".join(_environment().from_string(source).render(slots=slots, state=state).split())
    return None if not text or "None" in text else text


@lru_cache(maxsize=1)
def _environment() -> Any:
    return SandboxedEnvironment(autoescape=False)


def _domain(grammar: Grammar, slots: Any) -> str:
    """The kind of device that a request is about."""
    for domain, names in grammar.home.devices.items():
        if slots.get("name") in names:
            return domain
    return str(slots.get("domain", ""))
