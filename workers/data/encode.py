"""Prompt and target as token ids, in training exactly as in serving."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from workers.data.rows import Row
from workers.spec import DataSpec, InputError

_MARK = "moetune-marks-an-answer"


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded row. The loss counts the tokens of `target` and none of `prompt`."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    """Answer and end of turn (a choice to be scored: without the end of turn)."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True)
class Encoder:
    """Turns rows into token ids by the tokenizer's chat template, or as plain text."""

    tokenizer: PreTrainedTokenizerBase
    data: DataSpec
    end: tuple[int, ...] = field(init=False)
    """Token ids that end an answer: the chat template's end of turn, or the end of text."""

    def __post_init__(self) -> None:
        chat = self.data.template == "chat"
        object.__setattr__(self, "end", end_ids(self.tokenizer, chat=chat))

    def example(self, row: Row) -> Example:
        """Prompt and target of a row; a prompt that is too long loses its beginning."""
        return self._fit(row, (*self._ids(row.target), *self.end))

    def choices(self, row: Row) -> list[Example]:
        """One example for each choice of a row, to be compared by log-likelihood."""
        return [self._fit(row, self._ids(choice)) for choice in row.choices]

    def prompt(self, row: Row) -> tuple[int, ...]:
        """The prompt's token ids, whole."""
        if self.data.template == "chat":
            return chat_ids(self.tokenizer, row.messages)
        return tuple(self.tokenizer(row.prompt)["input_ids"])

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _fit(self, row: Row, target: tuple[int, ...]) -> Example:
        room = self.data.max_length - len(target)
        if room < 1:
            raise InputError(
                f"a target of task {row.task} has {len(target)} tokens, and leaves no room for its "
                f"prompt in data.max_length, which is {self.data.max_length}: {row.target!r:.60}"
            )
        prompt = self.prompt(row)
        if not prompt:
            raise InputError(f"a prompt of task {row.task} is empty (target {row.target!r:.60})")
        return Example(prompt[-room:], target)


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> tuple[int, ...]:
    """Token ids of a chat up to where the assistant's answer begins.

    The one place where the chat template is applied: training and the serving engine come here.
    """
    return tuple(
        tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    )


def end_ids(tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> tuple[int, ...]:
    """Token ids that end an answer; a server stops at the first of them."""
    if not chat:
        return _end_of_text(tokenizer)
    if not tokenizer.chat_template:
        raise InputError(
            f"model.path: {tokenizer.name_or_path}: has no chat template; set data.template: plain"
        )
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    # What the template writes behind an answer, without the line break before the next turn,
    # which no server waits for.
    text = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(_MARK)[2].rstrip()
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()
    return ids or _end_of_text(tokenizer)


def _end_of_text(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    if tokenizer.eos_token_id is None:
        raise InputError(f"model.path: {tokenizer.name_or_path}: its tokenizer has no end of text")
    return (tokenizer.eos_token_id,)
