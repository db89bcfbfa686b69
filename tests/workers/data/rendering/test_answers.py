"""Which tokens of a chat are learned: what a served model would have to write, and nothing else."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerBase

from tests.workers.data.chat_templates import CHATML, LLAMA, MARKED, QWEN, ending_calls
from tests.workers.data.conftest import byte_level, metaspace
from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.counts import RowCounts
from workers.data.encode import Encoder
from workers.data.rows import Row, training_rows
from workers.data.text_encoder import TextEncoder

USER = {"role": "user", "content": "Is the lamp on?"}
SYSTEM = {"role": "system", "content": "Be short."}
FIRST = {"role": "assistant", "content": "No.\n"}
LAST = {"role": "assistant", "content": "It is on."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "switch",
            "description": "Ends <|im_end|> it.",
            "parameters": {"type": "object", "properties": {"<|im_end|>": {"type": "string"}}},
        },
    }
]
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "switch", "arguments": {"to": 1}},
}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
ANSWERED = {"role": "tool", "content": "done", "tool_call_id": "abcdefghi", "name": "switch"}


def tokenizer(template: str) -> PreTrainedTokenizerBase:
    made = byte_level()
    names = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>")
    made.add_special_tokens(
        {"bos_token": "<s>", "additional_special_tokens": [AddedToken(name) for name in names[:3]]}
    )
    made.chat_template = template
    return made


def encoder(template: str, **changes: Any) -> Encoder:
    whole = {"train": "t", "validation": "v", "loss_on": "all", **changes}
    return Encoder(tokenizer(template), DataSpec(**whole))


def row(tmp_path: Any, messages: Sequence[Any], tools: Any = None, **spec: Any) -> Row:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages, "tools": tools}))
    whole = {"train": str(path), "validation": str(path), "loss_on": "all", **spec}
    return next(training_rows(DataSpec(**whole)))


def learned(encoder: Encoder, row: Row) -> list[str]:
    example = encoder.example(row)
    decode = encoder.tokenizer.decode
    return [decode(list(example.ids)[span.start : span.stop]) for span in example.spans]


TALK = [SYSTEM, USER, FIRST, USER | {"content": "Now?"}, FIRST, USER, LAST]


@pytest.mark.parametrize("template", [CHATML, MARKED, QWEN], ids=["chatml", "marked", "qwen"])
def test_all_answers_are_learned_with_their_ends(tmp_path: Any, template: str) -> None:
    made, said = encoder(template), row(tmp_path, TALK)
    first = "No.\n<|im_end|>"
    assert learned(made, said) == [first, first, "It is on.<|im_end|>"]
    assert made.example(said).prompt == TextEncoder(made.tokenizer).chat(TALK[:-1])
    alone = encoder(template, loss_on="last").example(said)
    assert (alone.ids, alone.spans) == (made.example(said).ids, made.example(said).spans[-1:])


def test_a_template_of_llamas_kind_has_calls_among_its_answers(tmp_path: Any) -> None:
    turns = [SYSTEM, USER, CALLING, ANSWERED, FIRST, USER, LAST]
    made, said = encoder(LLAMA), row(tmp_path, turns, TOOLS)
    assert learned(made, said) == [
        '{"name": "switch", "parameters": {"to": 1}}<|eot_id|>',
        "No.<|eot_id|>",
        "It is on.<|eot_id|>",
    ]
    example = made.example(said)
    prompt = example.prompt
    # Of two line breaks before a call, this tokenizer makes one token only where nothing follows.
    served = TextEncoder(made.tokenizer).chat(turns[:2], TOOLS)
    assert prompt[: example.spans[0].start] == served
    assert made.tokenizer.decode(prompt) == made.tokenizer.apply_chat_template(
        turns[:-1], tools=TOOLS, add_generation_prompt=True, tokenize=False
    )


@pytest.mark.parametrize("content", ["", "I call."])
@pytest.mark.parametrize("arguments", [{"to": "<|im_end|>"}, {"<|im_end|>": [1, None]}])
def test_calls_are_learned_as_the_template_writes_them(
    tmp_path: Any, content: str, arguments: dict[str, Any]
) -> None:
    call = {"type": "function", "function": {"name": "switch", "arguments": json.dumps(arguments)}}
    asked = CALLING | {"content": content, "tool_calls": [call, CALL]}
    made = encoder(QWEN)
    said = row(tmp_path, [USER, asked, ANSWERED, ANSWERED, LAST], TOOLS)
    written = (content and content + "\n") + (
        '<tool_call>\n{"name": "switch", "arguments": ' + json.dumps(arguments) + "}\n</tool_call>"
        '\n<tool_call>\n{"name": "switch", "arguments": {"to": 1}}\n</tool_call>'
    )
    # The same chat up to the call: the call is its last answer then.
    ends = row(tmp_path, [USER, asked], TOOLS)
    think = "<think>\n\n</think>\n\n"
    assert learned(made, ends) == [think + written + "<|im_end|>"]
    ids = made.example(ends).ids
    end = made.end[0]
    assert list(made.example(ends).target).count(end) == 1, "what is spelled out is text"
    assert list(ids).count(end) == 3, "of the tools, the question, and the answer"
    [(told, _)] = made.kept([ends], RowCounts("r"))
    assert told.target == told.answer == written
    assert told.references == (told.answer,)
    with pytest.raises(InputError, match="writes turn 2 into later prompts otherwise"):
        made.example(said)


def test_reasoning_is_learned_where_it_is_not_rewritten(tmp_path: Any) -> None:
    thought = LAST | {"reasoning": "The lamp shines."}
    made = encoder(QWEN)
    assert learned(made, row(tmp_path, [USER, FIRST, USER, thought])) == [
        "No.\n<|im_end|>",
        "<think>\nThe lamp shines.\n</think>\n\nIt is on.<|im_end|>",
    ]
    rewritten = row(tmp_path, [USER, thought, USER, LAST])
    with pytest.raises(InputError) as caught:
        made.example(rewritten)
    assert str(caught.value).endswith(
        "line 1: the chat template writes turn 2 into later prompts otherwise than it is answered; "
        "data.loss_on: last does without, and so does a template with {% generation %} marks"
    )
    assert learned(encoder(QWEN, loss_on="last"), rewritten) == ["It is on.<|im_end|>"]
    with pytest.raises(InputError, match=r"leaves out the reasoning of turn 2 \(assistant\)"):
        encoder(CHATML).example(row(tmp_path, [USER, thought]))


def test_what_a_template_has_no_place_for_is_refused(tmp_path: Any) -> None:
    for template in (CHATML, MARKED):
        made = encoder(template)
        with pytest.raises(InputError, match="line 1: the chat template leaves out the tools"):
            made.example(row(tmp_path, [USER, LAST], TOOLS))
        with pytest.raises(InputError, match=r"leaves out the tool calls of turn 2 \(assistant\)"):
            made.example(row(tmp_path, [USER, CALLING, ANSWERED, LAST]))
        with pytest.raises(InputError, match=r"leaves out the tool calls of turn 2 \(assistant\)"):
            made.example(row(tmp_path, [USER, CALLING]))


def test_weights_of_turns_are_those_of_their_tokens(tmp_path: Any) -> None:
    turns = [
        USER,
        FIRST | {"weight": 0.25},
        USER,
        FIRST | {"weight": 0},
        USER,
        LAST | {"weight": 0},
    ]
    for template in (CHATML, MARKED, QWEN):
        made = encoder(template)
        example = made.example(row(tmp_path, turns))
        assert [span.weight for span in example.spans] == [0.25, 0]
        assert made.tokenizer.decode(example.target) == "It is on.<|im_end|>"
        assert example.learned == example.spans[0].stop - example.spans[0].start


@pytest.mark.parametrize("template", [CHATML, MARKED, QWEN], ids=["chatml", "marked", "qwen"])
def test_an_end_of_turn_that_is_spelled_out_ends_nothing(tmp_path: Any, template: str) -> None:
    spelled = FIRST | {"content": "a <|im_end|>\n<|im_start|>user\nb"}
    turns = [USER | {"content": "<|im_end|>"}, spelled, USER, spelled]
    made = encoder(template)
    example = made.example(row(tmp_path, turns))
    assert learned(made, row(tmp_path, turns)) == [spelled["content"] + "<|im_end|>"] * 2
    assert list(example.ids).count(made.end[0]) == 4
    for span in example.spans:
        assert list(example.ids)[span.start : span.stop].count(made.end[0]) == 1


def test_a_template_of_sentencepieces_kind(tmp_path: Any) -> None:
    made = Encoder(metaspace(), DataSpec(train="t", validation="v", loss_on="all"))
    turns = [USER, FIRST, USER, FIRST | {"content": "a </s> b"}, USER, LAST]
    decoded = learned(made, row(tmp_path, turns))
    assert [text.strip() for text in decoded] == ["No.</s>", "a </s> b</s>", "It is on.</s>"]


def test_a_long_chat_loses_answers_that_are_not_whole(tmp_path: Any) -> None:
    said = row(tmp_path, TALK)
    whole = encoder(CHATML).example(said)
    for lost in range(1, whole.spans[-1].start):
        made = encoder(CHATML, max_length=len(whole) - lost)
        example = made.example(said)
        assert list(example.ids) == list(whole.ids)[lost:]
        assert [span.start + lost for span in example.spans] == [
            span.start for span in whole.spans if span.start >= lost
        ]
        assert example.lost == (lost, 0)


def test_what_has_lost_all_that_weighs_is_too_long(tmp_path: Any) -> None:
    said = row(tmp_path, [USER, FIRST, USER, LAST | {"weight": 0}])
    example = encoder(CHATML).example(said)
    room = len(example) - example.spans[0].start - 1
    with pytest.raises(InputError, match="all that have a weight begin before"):
        encoder(CHATML, max_length=room).example(said)
    counts = RowCounts("r")
    made = encoder(CHATML, max_length=room, too_long="skip")
    kept = made.kept([said, row(tmp_path, [USER, LAST])], counts)
    assert len(list(kept)) == counts.rows == counts.skipped == 1


def test_an_answer_to_nothing_is_said(tmp_path: Any) -> None:
    said = row(tmp_path, [FIRST, USER, LAST])
    with pytest.raises(InputError, match="turn 1 is an answer to nothing; give it weight 0"):
        encoder(CHATML).example(said)
    assert len(encoder(MARKED).example(said).spans) == 2


def test_choices_are_scored_alone(tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    record = {
        "messages": [USER, FIRST, USER, LAST],
        "metric": "acc",
        "choices": ["Yes", "It is on."],
    }
    path.write_text(json.dumps(record))
    data = DataSpec(train=str(path), validation=str(path), loss_on="all")
    made = Encoder(tokenizer(CHATML), data)
    choices = made.choices(next(training_rows(data)))
    assert [made.tokenizer.decode(one.target) for one in choices] == ["Yes", "It is on."]
    assert [len(one.spans) for one in choices] == [1, 1]


WRITES = "call.function.arguments | tojson"
TRUE = CALLING | {"tool_calls": [{"name": "switch", "arguments": {"to": True, "of": "lamp ✓"}}]}


@pytest.mark.parametrize("last", [True, False])
def test_a_template_that_leaves_out_arguments_is_refused(tmp_path: Any, last: bool) -> None:
    turns = [USER, TRUE] if last else [USER, TRUE, ANSWERED, LAST]
    for other in ("'{}'", "call.function.arguments.keys() | list | tojson"):
        template = QWEN.replace(WRITES, other)
        with pytest.raises(InputError, match=r"leaves out arguments .* of turn 2 \(assistant\)"):
            encoder(template, loss_on="last").example(row(tmp_path, turns, TOOLS))
    named = QWEN.replace("tool | tojson", "tool.function.name")
    with pytest.raises(InputError, match="the chat template leaves out the tools' parameters"):
        encoder(named).example(row(tmp_path, turns, TOOLS))


def test_true_is_written_as_json_has_it(tmp_path: Any) -> None:
    """By a template as Qwen3-Coder's, which writes values of one call beneath one another."""
    each = (
        "'' }}{% for k, v in call.function.arguments.items() %}{{ '<' + k + '>' }}"
        "{{ v | tojson if v is mapping else v | string }}{% endfor %}{{ ''"
    )
    made = encoder(QWEN.replace(WRITES, each))
    assert learned(made, row(tmp_path, [USER, CALLING], TOOLS))[0].count("<to>1")
    with pytest.raises(InputError, match="or writes them otherwise than as JSON"):
        made.example(row(tmp_path, [USER, TRUE], TOOLS))


@pytest.mark.parametrize("text", ["'' + call.function.arguments", "call.function.arguments"])
def test_a_template_that_wants_arguments_as_text_gets_text(tmp_path: Any, text: str) -> None:
    said = row(tmp_path, [USER, TRUE], TOOLS)
    assert learned(encoder(QWEN.replace(WRITES, text)), said) == learned(encoder(QWEN), said)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_given_by_all_its_names(tmp_path: Any, name: str) -> None:
    said = row(tmp_path, [USER, LAST | {"thinking": "The lamp shines."}])
    other = encoder(QWEN.replace("reasoning_content", name))
    assert learned(other, said) == learned(encoder(QWEN), said)


UNTHOUGHT = QWEN.replace("loop.index0 > ns.last", "m.reasoning_content")
"""That writes no empty reasoning, and so is proven for calls too."""


@pytest.mark.parametrize("loss_on", ["last", "all"])
@pytest.mark.parametrize("spelled", [False, True])
def test_a_call_is_learned_with_its_own_end(tmp_path: Any, loss_on: str, spelled: bool) -> None:
    """As Llama's `<|eom_id|>` and gpt-oss's `<|call|>`: where a server stops, too."""
    made = encoder(ending_calls(UNTHOUGHT, "<|eot_id|>"), loss_on=loss_on)
    to = "<|eot_id|> <|im_end|>" if spelled else "it"
    call = {"name": "switch", "arguments": {"to": to}}
    turns = [USER, CALLING | {"tool_calls": [call]}]
    written = f'<tool_call>\n{{"name": "switch", "arguments": {{"to": "{to}"}}}}\n</tool_call>'
    assert learned(made, row(tmp_path, turns, TOOLS)) == [written + "<|eot_id|>"]
    ids = made.example(row(tmp_path, turns, TOOLS)).ids
    own = made.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert list(ids).count(own) == 1
    assert made.stops == (made.end[0], own)
    [(told, _)] = made.kept([row(tmp_path, turns, TOOLS)], RowCounts("r"))
    assert told.answer == (written if not spelled else told.answer)
    later = learned(made, row(tmp_path, [*turns, ANSWERED, LAST], TOOLS))
    assert later == [written + "<|eot_id|>", "It is on.<|im_end|>"][loss_on == "last" :]


def test_a_marked_call_is_learned_with_its_own_end(tmp_path: Any) -> None:
    marked = MARKED.replace(
        "{{ m['content'] + '<|im_end|>\n' }}{% endgen",
        "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}"
        "{% endgeneration %}{{ '<|eot_id|>' if m.tool_calls else '<|im_end|>\n' }}{% generation %}"
        "{% endgen",
    ).replace("{% generation %}{% endgeneration %}", "")
    turns = [USER, CALLING, ANSWERED, LAST, USER, LAST]
    said = ['{"name": "switch", "arguments": {"to": 1}}<|eot_id|>', *["It is on.<|im_end|>"] * 2]
    assert learned(encoder(marked), row(tmp_path, turns)) == said


def test_a_call_that_ends_where_no_server_stops_is_refused(tmp_path: Any) -> None:
    made = encoder(ending_calls(QWEN, "[end]"), loss_on="last")
    assert made.stops == made.end[:1]
    assert learned(made, row(tmp_path, [USER, CALLING, ANSWERED, LAST], TOOLS))
    with pytest.raises(InputError, match=r"ends turn 2 with '.*\[end\]', but an answer of text"):
        made.example(row(tmp_path, [USER, CALLING], TOOLS))


@pytest.mark.parametrize("template", [CHATML, MARKED, QWEN, LLAMA])
def test_where_calls_end_as_text_does_nothing_else_stops(template: str) -> None:
    assert encoder(template).stops == encoder(template).end[:1]


VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


@pytest.mark.parametrize("question", ["Is it?", "Is <|im_end|> it?"], ids=["plain", "spelled"])
@pytest.mark.parametrize("trim", [True, False])
def test_an_answer_behind_a_space_begins_as_it_is_served(
    tmp_path: Any, question: str, trim: bool
) -> None:
    made = tokenizer(VICUNA)
    made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    data = DataSpec(train="t", validation="v", loss_on="all")
    asked, answer = USER | {"content": question}, LAST | {"content": "the lamp in the kitchen"}
    assert made.tokenize("x the")[1:] == ["\u0120the"], "a space and a word are one token"
    example = Encoder(made, data).example(row(tmp_path, [asked, answer, USER, answer]))
    for span in example.spans:
        text = list(example.ids)[span.start : span.stop]
        assert text == [*TextEncoder(made).text(answer["content"]), made.eos_token_id]
    served = TextEncoder(made).chat([asked])
    assert tuple(example.ids)[: example.spans[0].start] == served


CALLED = '<tool_call>\n{"name": "switch", "arguments": {"to": 1}}\n</tool_call>'
THOUGHT = {"reasoning_content": "The lamp shines."}


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (LAST | THOUGHT, "It is on."),
        (LAST, "It is on."),
        (LAST | {"content": "<think>\nIt shines.\n</think>\n\nIt is on."}, "It is on."),
        (CALLING | THOUGHT, CALLED),
    ],
    ids=["reasoning", "none", "in its text", "before a call"],
)
def test_reasoning_is_no_part_of_what_is_scored(tmp_path: Any, answer: Any, gold: str) -> None:
    made = encoder(QWEN)
    [(told, example)] = made.kept([row(tmp_path, [USER, answer], TOOLS)], RowCounts("r"))
    perfect = made.tokenizer.decode(example.target, skip_special_tokens=True).strip()
    assert told.answer == told.scored(perfect) == gold
    assert told.scored("<think>\nOther thoughts.\n</think>\n\n" + gold) == gold
    assert told.references == (gold,)


def test_a_template_without_reasoning_parts_none(tmp_path: Any) -> None:
    said = LAST | {"content": "a </think> b"}
    [(told, _)] = encoder(CHATML).kept([row(tmp_path, [USER, said])], RowCounts("r"))
    assert told.answer == told.scored(said["content"]) == said["content"]


def test_control_tokens_in_an_answers_reasoning_and_calls_are_counted(tmp_path: Any) -> None:
    made, end = encoder(QWEN), "<|im_end|>"
    spelled = {"name": "switch", "arguments": {"to": end}}
    for turn in (LAST | {"reasoning": f"It {end}."}, CALLING | {"tool_calls": [spelled]}):
        assert made.spells_control(row(tmp_path, [USER, turn]))
    assert not made.spells_control(row(tmp_path, [USER, LAST | THOUGHT]))


def test_marks_elsewhere_than_around_the_answers_are_refused(tmp_path: Any) -> None:
    other = MARKED.replace(
        "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}",
        "{% generation %}{{ 'said: ' }}{% endgeneration %}{{ m['content'] + '<|im_end|>\n' }}",
    )
    assert other != MARKED
    with pytest.raises(InputError, match="marks as answer 1 what has not its text"):
        encoder(other).example(row(tmp_path, TALK))


def test_a_row_whose_only_answer_of_weight_is_empty_is_refused(tmp_path: Any) -> None:
    """A batch of such rows has nothing to learn."""
    other = MARKED.replace(" + '<|im_end|>\n' }}{% endgen", " }}{% endgen", 1)
    turns = [USER, FIRST | {"content": ""}, USER, LAST | {"weight": 0}]
    with pytest.raises(InputError, match="or have no tokens"):
        encoder(other).example(row(tmp_path, turns))
