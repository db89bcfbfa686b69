"""Prompt and target as token ids, in training exactly as in serving."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from workers.data.rows import Row
from workers.data.text_encoder import TextEncoder
from workers.spec import DataSpec, InputError


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
    text: TextEncoder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", TextEncoder(self.tokenizer))
        object.__setattr__(self, "end", self.text.end(chat=self.data.template == "chat"))

    def example(self, row: Row) -> Example:
        """Prompt and target of a row; a prompt that is too long loses its beginning."""
        return self._fit(row, row.target, self.end)

    def choices(self, row: Row) -> list[Example]:
        """One example for each choice of a row, to be compared by log-likelihood."""
        return [self._fit(row, choice) for choice in row.choices]

    def _fit(self, row: Row, text: str, end: tuple[int, ...] = ()) -> Example:
        """InputError, with file and row, where it cannot be."""
        try:
            prompt, target = self._prompt(row), self.text.text(text) + end
        except InputError as error:
            raise InputError(f"{row.where}: {error}") from None
        room = self.data.max_length - len(target)
        if room < 1:
            raise InputError(
                f"{row.where}: its target has {len(target)} tokens, and leaves no room for a "
                f"prompt in data.max_length, which is {self.data.max_length}: {text!r:.60}"
            )
        if not prompt:
            raise InputError(f"{row.where}: its prompt is empty")
        return Example(prompt[-room:], target)

    def _prompt(self, row: Row) -> tuple[int, ...]:
        if self.data.template == "chat":
            return self.text.chat(row.messages)
        return self.text.prompt(row.prompt)
