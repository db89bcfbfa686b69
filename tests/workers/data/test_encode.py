"""Encoding: serving's prompt, the target and its end, and what happens to long rows."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.data.encode import Encoder, chat_ids
from workers.data.rows import Row
from workers.spec import DataSpec, InputError


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
    assert example.prompt == chat_ids(tokenizer, messages)
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
        InputError, match=r"target of task t has 11 tokens.*max_length, which is 11"
    ):
        Encoder(tokenizer, spec(max_length=11)).example(row(target="0123456789"))


def test_choices_share_the_prompt_and_have_no_end(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(tokenizer, spec())
    examples = encoder.choices(row(choices=("yes", "no"), answer_index=1))
    assert [tokenizer.decode(example.target) for example in examples] == ["yes", "no"]
    assert {example.prompt for example in examples} == {encoder.example(row()).prompt}


def test_a_tokenizer_without_chat_template_says_what_to_do(tiny_model_dir: Path) -> None:
    bare = AutoTokenizer.from_pretrained(tiny_model_dir)
    bare.chat_template = None
    with pytest.raises(InputError, match=r"no chat template; set data\.template: plain"):
        Encoder(bare, spec())
    assert Encoder(bare, spec(template="plain")).end == (bare.eos_token_id,)


def test_the_end_of_turn_is_the_templates_own(tiny_model_dir: Path) -> None:
    other = AutoTokenizer.from_pretrained(tiny_model_dir)
    other.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
        "{{ '<|endoftext|>\n\n' if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    )
    assert other.decode(Encoder(other, spec()).end) == "<|endoftext|>"
