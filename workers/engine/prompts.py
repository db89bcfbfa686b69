"""Prompts to token ids beside the event loop: what is too long is refused before that is known."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from transformers import PreTrainedTokenizerBase

from workers.config.base import InputError
from workers.data.chat import Turn
from workers.data.nested import indented_length, texts_in
from workers.engine.encoders import Encoders
from workers.engine.request import AdapterRef, Chat, RequestError, TextRequest
from workers.engine.turns import Turns

WAITING = 1024
"""Prompts of one tenant that may wait."""
LONG = 32
"""Characters that some token has at least: a tokenizer may take a word that it does not know for
one."""
PART = 2**15
"""Characters that are encoded at a time to find out that a prompt is too long."""


class Prompts:
    """Encodes prompts: one thread, one prompt at a time of each tenant.

    The tokenizer's library lets other threads run meanwhile, and a chat template does not: what
    could never be a prompt of so many tokens reaches neither, and of a long text only as much is
    encoded as shows that it is too long.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encode: Callable[[TextRequest], tuple[int, ...]],
        encoders: Encoders | None = None,
    ) -> None:
        """`encode` raises RequestError where it cannot; `encoders` have its templates."""
        self._tokenizer, self._encode = tokenizer, encode
        self._encoders = encoders or Encoders(tokenizer)
        self._longest = max(LONG, *map(len, tokenizer.get_vocab()))
        self._turns = Turns(WAITING)
        self._thread = ThreadPoolExecutor(1, "prompts")

    async def ids(self, request: TextRequest, allowed: int) -> tuple[int, ...]:
        """The prompt's token ids; RequestError where there are more than `allowed`, as far as that
        is seen before all of it is encoded."""
        if isinstance(request.prompt, tuple):
            return request.prompt
        texts = _least(request.prompt)
        if len(texts) > allowed or sum(map(len, texts)) > allowed * self._longest:
            raise _too_long(request, allowed)
        loop = asyncio.get_running_loop()
        async with self._turns.of(request.tenant):
            return await loop.run_in_executor(self._thread, self._encoded, request, allowed)

    def _encoded(self, request: TextRequest, allowed: int) -> tuple[int, ...]:
        assert not isinstance(request.prompt, tuple)
        if _written(request.prompt) > PART:
            text = self._rendered(request.prompt, request.adapter)
            if self._tokens_at_least(text, allowed) > allowed:
                raise _too_long(request, allowed)
        return self._encode(request)

    def _tokens_at_least(self, text: str, enough: int) -> int:
        """Tokens that the text surely has; not all of them are counted once there are enough. A cut
        between two parts parts one token, into no more of them than it has characters."""
        counted = 0
        for begin in range(0, len(text), PART):
            part = text[begin : begin + PART]
            [encoded] = self._tokenizer.backend_tokenizer.encode_batch_fast([part])
            counted += max(0, len(encoded) - self._longest)
            if counted > enough:
                break
        return counted

    def _rendered(self, prompt: str | Chat, adapter: AdapterRef | None) -> str:
        if isinstance(prompt, str):
            return prompt
        try:
            template = self._encoders.of(adapter).template
            return template.render(prompt.messages, prompt.tools, prompt=False)
        except InputError:  # `encode` says what is wrong
            return ""


def _least(prompt: str | Chat) -> list[str]:
    """What surely is in the rendered prompt: of each message one text, and of each tool. A template
    may leave out fields' names, calls' ids, reasoning, and most of a tool."""
    if isinstance(prompt, str):
        return [prompt]
    turns = [(turn.get("content"), _called(turn)) for turn in prompt.messages]
    tools = [tool["function"]["name"] for tool in prompt.tools]
    return ["".join(texts_in(one, names=False)) for one in (*turns, *tools)]


def _called(turn: Turn) -> list[Any]:
    return [call["function"] for call in turn.get("tool_calls", ())]


def _written(prompt: str | Chat) -> int:
    """Characters of it before the template's own: numbers and indentation are tokens too."""
    if isinstance(prompt, str):
        return len(prompt)
    return sum(map(indented_length, (*prompt.messages, *prompt.tools)))


def _too_long(request: TextRequest, allowed: int) -> RequestError:
    return RequestError(
        f"the prompt is longer than the {allowed} tokens that may come here",
        request.param,
        code="context_length_exceeded",
    )
