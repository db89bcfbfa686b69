"""Text and chats as token ids: the one place for it, in training as in serving.

What people write is text: `<|im_end|>` in it is so many characters. Control tokens come from the
chat template alone, and from the tokenizer where it puts one before every text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from workers.config.base import InputError, one_line
from workers.data.control_tokens import ControlTokens

_MARK = "moetune-marks-a-turn"
Ids = tuple[int, ...]
_ROLES = 64
"""Sequences of roles whose fate in the template is remembered."""


@dataclass(frozen=True, slots=True)
class Written:
    """A text on its way to the tokenizer."""

    text: str
    spelled: bool = False
    """Whether it spells out control tokens, and so wants the tokenizer that has none to write."""
    begins: bool = False
    """Whether it comes behind what the tokenizer begins every text with."""


class TextEncoder:
    """Token ids by one tokenizer. Its errors are InputErrors of one line that do not say where the
    text came from; who knows that adds it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._beginning = _beginning(tokenizer)
        self._control = ControlTokens(tokenizer, self._around_a_turn())
        self._dropped = lru_cache(_ROLES)(self._dropped_turns)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> Ids:
        """A chat up to where the assistant's answer begins. InputError where the template fails, or
        leaves out a turn's text."""
        return self.ids([self.written_chat(messages)])[0]

    def written_chat(self, messages: Sequence[Mapping[str, str]]) -> Written:
        """The same for `ids`."""
        turns: list[dict[str, str]] = [dict(message) for message in messages]
        spelled = any(self.spells_control(text) for turn in turns for text in turn.values())
        if spelled:
            quoted = self._control.quoted
            turns = [{name: quoted(text) for name, text in turn.items()} for turn in turns]
        rendered = self._rendered(turns)
        dropped = self._dropped(tuple(turn["role"] for turn in turns))
        for at, turn in enumerate(turns):
            text = _lasting(turn)
            if text and (at in dropped or not _holds(rendered, text)):
                raise InputError(
                    f"the chat template leaves out the text of turn {at + 1} ({turn['role']})"
                )
        return Written(self._control.named(rendered), spelled) if spelled else Written(rendered)

    def prompt(self, text: str) -> Ids:
        """A text to be gone on with: behind what the tokenizer begins every text with, and without
        what it may end one with."""
        return self.ids([self.written(text, begins=True)])[0]

    def text(self, text: str) -> Ids:
        """The text alone."""
        return self.ids([self.written(text)])[0]

    def written(self, text: str, *, begins: bool = False) -> Written:
        """The same for `ids`."""
        return Written(text, self.spells_control(text), begins)

    def ids(self, texts: Sequence[Written]) -> list[Ids]:
        """Token ids of each, in one call of the tokenizer. InputError where one cannot be read."""
        spelled = [one.text for one in texts if one.spelled]
        plain = iter(self._plain_ids([one.text for one in texts if not one.spelled]))
        ids = iter(self._control.text_ids(spelled) if spelled else ())
        own = [next(ids) if one.spelled else next(plain) for one in texts]
        return [
            self._beginning + it if one.begins else it for it, one in zip(own, texts, strict=True)
        ]

    def spells_control(self, text: str) -> bool:
        """Whether the text spells out a control token."""
        return self._control.spelled_in(text)

    def end(self, *, chat: bool) -> Ids:
        """What ends an answer; a server stops at the first of them. InputError names the model."""
        where = f"model.path: {self._tokenizer.name_or_path}"
        if chat and not self._tokenizer.chat_template:
            raise InputError(f"{where}: has no chat template; set data.template: plain")
        ids = self._end_of_turn(where) if chat else ()
        if not ids and self._tokenizer.eos_token_id is None:
            raise InputError(f"{where}: its tokenizer has no end of text")
        return ids or (self._tokenizer.eos_token_id,)

    def _end_of_turn(self, where: str) -> Ids:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        try:
            _, found, behind = self._rendered(turns, prompt=False).rpartition(_MARK)
        except InputError as error:
            raise InputError(f"{where}: a question and its answer: {error}") from None
        if not found:
            raise InputError(f"{where}: its chat template leaves out an assistant's text")
        # Without the line break before the next turn, which no server waits for.
        return self.ids([Written(behind.rstrip())])[0]

    def _rendered(self, turns: Sequence[Mapping[str, str]], prompt: bool = True) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(turns), add_generation_prompt=prompt, tokenize=False
                )
            )
        except Exception as error:  # The template is a program of the model's: it may fail anyhow.
            raise InputError(f"the chat template refuses it: {one_line(error)}") from None

    def _dropped_turns(self, roles: tuple[str, ...]) -> frozenset[int]:
        """The turns that the template leaves out whatever they say; a short text that is left out
        could stand elsewhere in the prompt by chance."""
        marks = [f"{_MARK}-{at}." for at in range(len(roles))]
        turns = zip(roles, marks, strict=True)
        rendered = self._rendered([{"role": role, "content": mark} for role, mark in turns])
        return frozenset(at for at, mark in enumerate(marks) if mark not in rendered)

    def _around_a_turn(self) -> str:
        """A turn as the template writes it; nothing where it wants others, which `end` tells."""
        if not self._tokenizer.chat_template:
            return ""
        try:
            return self._rendered([{"role": "user", "content": "?"}])
        except InputError:
            return ""

    def _plain_ids(self, texts: Sequence[str]) -> list[Ids]:
        if not texts:
            return []
        tokenizer = self._tokenizer
        if tokenizer.is_fast and _is_bare(tokenizer):
            batch = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return [tuple(one.ids) for one in batch]
        return [tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _is_bare(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's library, asked directly, gives what the tokenizer would. Each call of
    the tokenizer leaves its own way of cutting and filling up behind."""
    library = tokenizer.backend_tokenizer
    same = library.encode_special_tokens == tokenizer.split_special_tokens
    return same and library.truncation is None and library.padding is None


def _beginning(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """What the tokenizer puts before every text."""
    whole, bare = (
        tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False)
    )
    places = range(len(whole) - len(bare) + 1)
    start = next((at for at in places if whole[at : at + len(bare)] == bare), 0)
    return tuple(whole[:start])


def _lasting(turn: Mapping[str, Any]) -> str:
    """The text that a template must keep; some drop an earlier answer's reasoning by intent."""
    text = str(turn["content"])
    return (text.rpartition("</think>")[2] if turn["role"] == "assistant" else text).strip()


def _holds(rendered: str, text: str) -> bool:
    """Whether the prompt has the text: as it stands, or quoted as JSON, as some do with tools'."""
    return text in rendered or json.dumps(text, ensure_ascii=False)[1:-1] in rendered
