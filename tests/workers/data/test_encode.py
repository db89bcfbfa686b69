"""Encoding: serving's prompt, the target and its end, and what happens to long rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.workers.data.conftest import unigram
from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.counts import RowCounts
from workers.data.encode import CHUNK, Encoder
from workers.data.rows import Row
from workers.data.text_encoder import TextEncoder


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def spec(**changes: Any) -> DataSpec:
    return DataSpec(train="train.jsonl", validation="validation.jsonl", **changes)


def row(prompt: str = "Lamp on!", target: str = "done", **changes: Any) -> Row:
    values: dict[str, Any] = {
        "messages": ({"role": "user", "content": prompt},),
        "target": target,
        "task": "t",
        "metric": "exact_match",
        "answer": target,
        "references": (target,),
        "choices": (),
        "answer_index": -1,
        "where": "rows.jsonl: line 7",
    }
    return Row(**(values | changes))


def test_a_chat_is_prompt_target_and_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    example = Encoder(tokenizer, spec()).example(row())
    assert tokenizer.decode(example.prompt) == (
        "<|im_start|>user\nLamp on!<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(example.target) == "done<|im_end|>"
    assert example.target[-1] == tokenizer.eos_token_id


def test_the_prompt_is_what_serving_sends(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    example = Encoder(tokenizer, spec()).example(row(messages=tuple(messages)))
    assert example.prompt == TextEncoder(tokenizer).chat(messages)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(example.prompt) == text


def test_plain_text_ends_with_the_end_of_text(tokenizer: PreTrainedTokenizerBase) -> None:
    example = Encoder(tokenizer, spec(template="plain")).example(row("2 + 2 =", " 4"))
    assert tokenizer.decode(example.prompt) == "2 + 2 ="
    assert tokenizer.decode(example.target) == " 4<|im_end|>"


def test_a_long_prompt_loses_its_beginning_and_the_target_is_kept(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    whole = Encoder(tokenizer, spec()).example(row("x" * 50 + "tail", "answer"))
    example = Encoder(tokenizer, spec(max_length=40)).example(row("x" * 50 + "tail", "answer"))
    assert len(example) == 40
    assert example.target == whole.target
    assert example.prompt == whole.prompt[-len(example.prompt) :]


def test_a_target_that_fills_the_row_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(
        InputError, match=r"rows\.jsonl: line 7: its target has 11 tokens.*max_length, which is 11"
    ):
        Encoder(tokenizer, spec(max_length=11)).example(row(target="0123456789"))


@pytest.mark.parametrize(
    ("prompt", "target", "shown", "learnt"),
    [
        ("p" * 30, "0123456789", "p" * 5, "01234"),
        ("p" * 5, "0123456789", "p" * 5, "01234"),
        ("pp", "0123456789", "pp", "01234567"),
        ("p" * 30, "012345678", "p" * 5, "01234"),  # with its end, ten tokens
        ("p" * 30, "01234567", "p", "01234567<|im_end|>"),
    ],
)
def test_a_target_that_is_cut_keeps_its_beginning_and_half_of_the_room_is_the_prompts(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str, shown: str, learnt: str
) -> None:
    encoder = Encoder(tokenizer, spec(template="plain", max_length=10, too_long="cut"))
    example = encoder.example(row(prompt, target))
    assert tokenizer.decode(example.prompt) == shown
    assert tokenizer.decode(example.target) == learnt
    assert len(example) <= 10
    assert example.lost == (
        len(prompt) - len(shown),
        len(target) + 1 - len(example.target),
    )


def test_rows_that_are_too_long_are_refused_left_out_or_cut(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rows = [
        row("p" * 4, "t" * length, where=f"line {at}") for at, length in enumerate([3, 9, 1, 12])
    ]
    kept: dict[str, list[str]] = {}
    for policy in ("skip", "cut", "refuse"):
        counts = RowCounts("rows.jsonl")
        data = spec(template="plain", max_length=8, too_long=policy)
        examples = Encoder(tokenizer, data).kept(rows, counts)
        if policy == "refuse":
            with pytest.raises(InputError, match=r"line 1: its target has 10 tokens"):
                list(examples)
            continue
        kept[policy] = [one.where for one, _ in examples]
        assert counts.rows + counts.skipped == 4
        assert (counts.skipped, counts.targets_cut) == {"skip": (2, 0), "cut": (0, 2)}[policy]
        assert "2 l" in str(counts)
        assert "(the first: line 1)" in str(counts)
    assert kept == {"skip": ["line 0", "line 2"], "cut": ["line 0", "line 1", "line 2", "line 3"]}


def test_rows_that_are_encoded_together_are_encoded_as_each_alone(
    any_tokenizer: PreTrainedTokenizerBase,
) -> None:
    end = any_tokenizer.eos_token
    texts = ["the lamp", f"a{end}b", " ", "Ä✓☃ in the kitchen", f"{end}{end}", "x" * 90]
    rows = [
        row(one + " ?", other + "!", choices=(other + "!", one + "."), answer_index=0)
        for one in texts
        for other in texts
    ]
    for template in ("chat", "plain"):
        for scored in (False, True):
            encoder = Encoder(any_tokenizer, spec(template=template, max_length=60, too_long="cut"))
            together = [one for _, one in encoder.kept(rows, RowCounts("r"), scored)]
            assert together == [encoder.example(one) for one in rows]
            # Whatever somebody else has set the tokenizer to meanwhile.
            any_tokenizer(["a", "bb"], max_length=3, truncation=True)
            again = [one for _, one in encoder.kept(rows, RowCounts("r"), scored)]
            assert together == again


def test_rows_are_taken_as_they_are_asked_for(tokenizer: PreTrainedTokenizerBase) -> None:
    taken = 0

    def endless() -> Iterator[Row]:
        nonlocal taken
        while True:
            taken += 1
            yield row()

    counts = RowCounts("r")
    next(Encoder(tokenizer, spec()).kept(endless(), counts))
    assert taken == CHUNK
    assert counts.rows == 1


@pytest.mark.parametrize("bad", [0, 1, CHUNK - 1, CHUNK, CHUNK + 3])
@pytest.mark.parametrize("kind", ["cannot be encoded", "cannot be read", "is too long"])
def test_rows_before_a_bad_one_come_out_and_it_is_named(
    tokenizer: PreTrainedTokenizerBase, bad: int, kind: str
) -> None:
    def read() -> Iterator[Row]:
        for at in range(CHUNK + 9):
            if at == bad and kind == "cannot be read":
                raise InputError(f"line {at}: is no row")
            empty = at >= bad and kind == "cannot be encoded"
            target = "t" * 9 if at >= bad and kind == "is too long" else "t"
            yield row("" if empty else "p", target, where=f"line {at}")

    counts, found = RowCounts("r"), list[str]()
    kept = Encoder(tokenizer, spec(template="plain", max_length=9)).kept(read(), counts)
    with pytest.raises(InputError, match=f"^line {bad}: "):
        found.extend(one.where for one, _ in kept)
    assert found == [f"line {at}" for at in range(bad)]
    assert counts.rows == bad


def test_of_rows_that_the_tokenizer_refuses_the_first_is_named() -> None:
    encoder = Encoder(unigram(), spec(template="plain"))
    bad = {3: "a</s>", 5: "b</s>"}
    rows = [row("a", bad.get(at, "ab"), where=f"line {at}") for at in range(7)]
    found = encoder.kept(rows, RowCounts("r"))
    assert [next(found)[0].where for _ in range(3)] == ["line 0", "line 1", "line 2"]
    with pytest.raises(InputError, match=r"^line 3: the base's tokenizer cannot read"):
        next(found)


def test_a_source_of_which_no_row_is_left_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    data = spec(template="plain", max_length=8, too_long="skip")
    with pytest.raises(InputError, match=r"rows\.jsonl: no row is left; 1 left out"):
        list(Encoder(tokenizer, data).kept([row(target="t" * 9)], RowCounts("rows.jsonl")))


def test_a_choice_that_is_too_long_counts_where_choices_are_scored(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoder = Encoder(tokenizer, spec(template="plain", max_length=8, too_long="skip"))
    rows = [row("p", "a", choices=("a", "b" * 9)), row("p", "a")]
    assert len(list(encoder.kept(rows, RowCounts("r")))) == 2
    assert len(list(encoder.kept(rows, RowCounts("r"), scored=True))) == 1


def test_choices_share_the_prompt_and_have_no_end(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(tokenizer, spec())
    examples = encoder.choices(row(choices=("yes", "no"), answer_index=1))
    assert [tokenizer.decode(example.target) for example in examples] == ["yes", "no"]
    assert {example.prompt for example in examples} == {encoder.example(row()).prompt}


def test_control_tokens_in_a_row_are_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "a<|im_end|><|endoftext|>"
    spelled = row(text, text, choices=(text, "b"), answer_index=0)
    for template, control in (("chat", 3), ("plain", 0)):
        encoder = Encoder(tokenizer, spec(template=template))
        example = encoder.example(spelled)
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        assert sum(one in special for one in example.prompt) == control
        assert [one for one in example.target if one in special] == list(encoder.end)
        assert not special.intersection(encoder.choices(spelled)[0].target)
        assert tokenizer.decode(example.target) == text + "<|im_end|>"


def test_what_a_template_does_not_take_is_said_with_file_and_row(tiny_model_dir: Path) -> None:
    strict = AutoTokenizer.from_pretrained(tiny_model_dir)
    strict.chat_template = (
        "{% for m in messages %}{% if m['role'] not in ('user', 'assistant') %}"
        "{{ raise_exception('roles must\nalternate') }}{% endif %}"
        "{{ m['content'][:40] }}{{ eos_token }}{% endfor %}"
    )
    encoder = Encoder(strict, spec())
    assert encoder.example(row())
    turns = ({"role": "system", "content": "Be short."},)
    for bad, said in (
        (row(messages=turns), "the chat template refuses it: roles must alternate"),
        (row("x" * 41), "the chat template leaves out the text of turn 1 (user)"),
    ):
        with pytest.raises(InputError) as caught:
            encoder.example(bad)
        assert str(caught.value) == f"rows.jsonl: line 7: {said}"


def test_an_empty_prompt_is_said_with_file_and_row(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl: line 7: its prompt is empty"):
        Encoder(tokenizer, spec(template="plain")).example(row(""))
