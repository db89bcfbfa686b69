"""Where the assistant speaks: as quick for a long chat as it may be, and the same as by rendering
what is before each answer."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.workers.data.chat_templates import LLAMA
from tests.workers.data.conftest import byte_level
from workers.config.base import InputError
from workers.data.chat import Turn, weight
from workers.data.rendering.answers import Answers
from workers.data.rendering.spans import Spans, TextSpan
from workers.data.rendering.template import ChatTemplate, Tools

SAMPLES = 60
TOOLS: Tools = [{"type": "function", "function": {"name": "switch"}}]

KEEPS = {
    "always": "true",
    "never but of the last turn": "loop.last",
    "behind the last question": "loop.index0 > ns.last",
    "of the last three turns": "loop.revindex <= 3",
    "of the last nine turns": "loop.revindex <= 9",
}
"""When an answer's reasoning is written."""
HEADS = {
    "nothing": "",
    "the tools": "{% if tools %}{{ '<|u|>' + tools | tojson + '\n' }}{% endif %}",
    "that it is long": "{% if messages | length > 12 %}{{ 'long\n' }}{% endif %}",
    "that it is short": "{% if messages | length < 4 %}{{ 'short\n' }}{% endif %}",
    "of its first turn": "{{ messages[0].role + '\n' }}",
}
BEFORE = {
    "nothing": "",
    "the turn's number": "{{ loop.index }}",
    "tools before the last question": (
        "{% if tools and loop.index0 == ns.last %}{{ tools | tojson }}{% endif %}"
    ),
    "what came before": "{% if loop.index0 %}{{ messages[loop.index0 - 1].role }}{% endif %}",
    "who called": "{% if m.role == 'tool' %}{{ ns.called }}{% endif %}",
    "that turns go back and forth": (
        "{% if m.role == 'user' and not loop.first and messages[loop.index0 - 1].role == 'user' %}"
        "{{ raise_exception('two questions') }}{% endif %}"
    ),
    "that questions have even places": (
        "{% if m.role == 'user' and loop.index0 % 2 %}{{ raise_exception('odd') }}{% endif %}"
    ),
}
PROMPTS = ["<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n", "<|im_start|>"]
ENDS = ["<|im_end|>\n", "<|im_end|>", "<|im_end|>\n\n"]


def a_template(draw: random.Random) -> str:
    """One of the shapes that templates have, and of some that none has."""
    head, before, keeps = (_often_the_first([*of.values()], draw) for of in (HEADS, BEFORE, KEEPS))
    end, prompt = _often_the_first(ENDS, draw), _often_the_first(PROMPTS, draw)
    trim = draw.choice(["", " | trim"])
    return (
        "{% set ns = namespace(last=0, called='') %}"
        "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
        "{% endfor %}" + head + "{% for m in messages %}" + before + "{{ '<|im_start|>'"
        " + m.role + '\n' }}{% if m.reasoning_content and ("
        + keeps
        + ") %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n' }}{% endif %}"
        "{{ m.content" + trim + " }}{% for c in m.tool_calls or [] %}{% set ns.called = "
        "c.function.name %}{{ '<tool_call>' + c.function | tojson }}{% endfor %}{{ '"
        + end
        + "' }}{% endfor %}{% if add_generation_prompt %}{{ '"
        + prompt
        + "' }}{% endif %}"
    )


def _often_the_first(of: Sequence[str], draw: random.Random) -> str:
    return of[0] if draw.random() < 0.6 else draw.choice(of)


def a_turn(role: str, at: int, draw: random.Random) -> dict[str, Any]:
    turn: dict[str, Any] = {
        "role": role,
        "content": draw.choice(["so ", f" {role} {at}", f"{role} {at}."]),
    }
    if role != "assistant":
        return turn
    if draw.random() < 0.2:
        turn["reasoning_content"] = f"thought {at}"
    if draw.random() < 0.2:
        call = {"name": draw.choice("fg"), "arguments": {"at": at}}
        turn["tool_calls"] = [{"type": "function", "function": call}]
    return turn if draw.random() < 0.7 else turn | {"weight": draw.choice([0, 0.5])}


def a_chat(draw: random.Random) -> list[dict[str, Any]]:
    roles = ["system"] * draw.randrange(2)
    for _ in range(draw.randrange(1, 12)):
        roles += ["user"] * draw.choice([1, 1, 1, 1, 2]) + ["assistant"]
        roles += ["tool", "assistant"] * draw.choice([0, 0, 0, 1, 3])
    return [a_turn(role, at, draw) for at, role in enumerate([*roles, "user"])]


def by_all_before(
    answers: Answers, rendered: str, turns: Sequence[Turn], tools: Tools
) -> Iterator[TextSpan]:
    """The plain way: of each answer, all that is before it is rendered."""
    for at, turn in enumerate(turns):
        if turn["role"] != "assistant" or not weight(turn):
            continue
        asked = answers.template.render(turns[:at], tools)
        said, end = answers.written(turns[:at], tools, turn, asked)
        stop = rendered.find(end, len(asked))
        if not rendered.startswith(asked) or rendered[len(asked) : stop].strip() != said.strip():
            raise InputError(
                f"the chat template writes turn {at + 1} into later prompts otherwise than it is "
                "answered; data.loss_on: last does without, and so does a template with "
                "{% generation %} marks"
            )
        yield TextSpan(len(asked), stop + len(end), weight(turn))


@pytest.mark.parametrize("seed", range(4))
def test_answers_are_found_as_by_rendering_all_that_is_before_them(seed: int) -> None:
    draw, tokenizer = random.Random(seed), byte_level()
    fates: dict[bool, int] = {True: 0, False: 0}
    for _ in range(SAMPLES):
        template = ChatTemplate(tokenizer, a_template(draw))
        answers, turns = Answers(template), a_chat(draw)
        tools = draw.choice([TOOLS, ()])
        try:
            rendered = template.render(turns, tools)
            expected: Any = tuple(by_all_before(answers, rendered, turns, tools))
        except InputError as error:
            expected = str(error)
        try:
            rendered = template.render(turns, tools)
            found: Any = Spans(answers, str).of(rendered, turns, tools)
        except InputError as error:
            found = str(error)
        assert found == expected
        fates[isinstance(found, tuple) and len(found) > 2] += 1
    assert min(fates.values()) > 5, "some are proven, and some refused"


class Counting(ChatTemplate):
    """Counts the turns that it has rendered."""

    turns = 0

    def render(self, turns: Sequence[Turn], tools: Tools = (), *, prompt: bool = True) -> str:
        self.turns += len(turns)
        return super().render(turns, tools, prompt=prompt)


@pytest.mark.parametrize("calls", [False, True])
def test_a_long_chat_renders_a_few_times_its_turns(calls: bool) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    asked = {"role": "tool" if calls else "user", "content": "u"}
    said: dict[str, Any] = {"content": "", "tool_calls": [call]} if calls else {"content": "a"}
    answer = {"role": "assistant", **said}
    counted = []
    for answers in (50, 100, 200):
        template = Counting(byte_level(), LLAMA)
        turns = [{"role": "user", "content": "u"}, *[answer, asked] * answers]
        spans = Spans(Answers(template), str).of(template.render(turns), turns, ())
        assert len(spans) == answers
        counted.append(template.turns / len(turns))
    assert max(counted) < 15
    assert counted[-1] < counted[0] * 1.2
