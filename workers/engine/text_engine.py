"""Text in, text out: the chat template before an engine, detokenizer and stop strings behind it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from uuid import uuid4

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from workers.config.base import InputError
from workers.engine.encoders import Encoders
from workers.engine.prompts import Prompts
from workers.engine.protocol import Engine
from workers.engine.request import AdapterRef, Chat, Chunk, RequestError, Sampling, TextRequest
from workers.engine.token_text import Offsets, TokenTexts


class TextEngine:
    """Serves text requests on an engine: what runs in a Serve replica, and in tests without Ray."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase) -> None:
        self.engine = engine
        self._tokenizer = tokenizer
        self._encoders = Encoders(tokenizer)
        self._texts = TokenTexts(tokenizer)
        self._whole_texts = self._texts.with_special()
        self._prompts = Prompts(tokenizer, self._prompt_ids, self._encoders)

    async def load(self, adapter: AdapterRef) -> None:
        """Hold an adapter ready. Raises InputError where it cannot be read or does not fit."""
        await asyncio.to_thread(self.engine.load, adapter)
        await asyncio.to_thread(self._encoders.of, adapter)

    async def unload(self, slot: str) -> None:
        """Drop an adapter: at once, or when the last request that it answers has ended."""
        await asyncio.to_thread(self.engine.unload, slot)

    async def keep(self, slots: Collection[str]) -> None:
        """Say which slots no others may drive out."""
        await asyncio.to_thread(self.engine.keep, slots)

    async def ready(self) -> bool:
        """Whether the engine generates."""
        return self.engine.healthy

    async def encode(self, requests: Sequence[TextRequest]) -> tuple[tuple[int, ...], ...]:
        """Token ids of their prompts; RequestError for the first one that would be refused."""
        return tuple([await self._checked(at, one) for at, one in enumerate(requests)])

    async def generate(self, request: TextRequest) -> AsyncGenerator[Chunk]:
        """The answer, piece by piece; closing the iterator takes the request off the engine."""
        prompt = await self._prompts.ids(request, self._allowed)
        sampling = self._sampling(request, len(prompt))
        special = isinstance(request.prompt, Chat) and bool(request.prompt.tools)
        texts = self._whole_texts if special else self._texts
        raw = texts.raw if request.logprobs is not None else None
        text = AnswerText(self._tokenizer, request.stop, raw, special=special)
        for token in request.generated:
            text.push(token)
        read = [*prompt, *request.generated]
        number = uuid4().hex
        stream = self.engine.generate(
            prompt, request.adapter, sampling, request.generated, request.asker, number
        )
        async with aclosing(stream):
            async for piece in stream:
                read += piece.tokens
                shown = text.push_all(piece.tokens, ended=piece.finish == "stop")
                if piece.finish and not text.stopped:
                    shown += text.end()
                last = piece
                if text.stopped and not piece.finish:
                    self.engine.abort(number)
                    last = await anext(stream)
                end = "stop" if text.stopped else last.finish
                yield Chunk(
                    text=shown,
                    tokens=piece.tokens,
                    prompt_tokens=len(prompt),
                    completion_tokens=len(read) - len(prompt),
                    finish=end,
                    logprobs=texts.of(
                        piece.logprobs[:-1] if piece.finish == "stop" else piece.logprobs,
                        text.offsets[len(text.offsets) - len(piece.tokens) :],
                    ),
                    routing=texts.named(last.routing, read),
                    timing=piece.timing,
                )
                if end:
                    return

    async def _checked(self, at: int, request: TextRequest) -> tuple[int, ...]:
        """The ids of one of several prompts; an error says of which."""
        try:
            ids = await self._prompts.ids(request, self._allowed)
            self.engine.check(ids, self._sampling(request, len(ids)))
        except RequestError as error:
            where = f"{request.param}.{at}"
            param = where if error.param == request.param else error.param
            raise RequestError(f"{where}: {error}", param, error.status, error.code) from None
        return ids

    def _prompt_ids(self, request: TextRequest) -> tuple[int, ...]:
        encoder = self._encoders.of(request.adapter)
        if isinstance(request.prompt, Chat) and not encoder.template.there:
            raise RequestError("the base model has no chat template: use completions", "messages")
        try:
            match request.prompt:
                case Chat(messages, tools):
                    return encoder.chat(messages, tools)
                case str(text):
                    return encoder.prompt(text)
                case ids:
                    return ids
        except InputError as error:
            raise RequestError(str(error), request.param) from None

    @property
    def _allowed(self) -> int:
        """Tokens of a prompt."""
        longest = self.engine.max_length - 1
        return min(longest, self.engine.limits.max_prompt_tokens or longest)

    def _sampling(self, request: TextRequest, prompt_tokens: int) -> Sampling:
        limits, allowed = self.engine.limits, self._allowed
        if prompt_tokens > allowed:
            raise RequestError(
                f"the prompt has {prompt_tokens} tokens, but at most {allowed} may come here, and "
                f"{self.engine.max_length} together with the answer",
                request.param,
                code="context_length_exceeded",
            )
        room = self.engine.max_length - prompt_tokens
        return Sampling(
            max_tokens=request.max_tokens or min(limits.max_new_tokens, room),
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            json_schema=request.schema,
            logprobs=request.logprobs,
            by_token=request.routing == "tokens",
            ends=self._encoders.ends(request.adapter),
        )


class AnswerText:
    """Tokens to text as they come, cut at the first stop string.

    Text that may be the beginning of a stop string, or half a character, is held back.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        raw: Callable[[int], bytes] | None = None,
        *,
        special: bool = False,
    ) -> None:
        """`raw` is what a token adds to a text (`TokenTexts.raw`), where `offsets` are wanted.
        `special`: special tokens are text too, as in calls of tools, which some models begin with
        one."""
        self.stopped = False
        self.offsets: list[int] = []
        """Where in the text each token begins, in characters."""
        self._tokenizer, self._stop = tokenizer, stop
        self._raw, self._places = raw, Offsets()
        self._skip = not special
        self._stream = DecodeStream(skip_special_tokens=self._skip)
        self._tokens: list[int] = []
        self._decoded = self._held = ""

    def push_all(self, tokens: Sequence[int], *, ended: bool) -> str:
        """What `push` gives for each. `ended`: the last one ends the answer."""
        last = len(tokens) - 1
        return "".join(self.push(one, end=ended and at == last) for at, one in enumerate(tokens))

    def push(self, token: int, *, end: bool = False) -> str:
        """Text that is certain after this token; nothing more once a stop string was met. One that
        is the `end` of the answer is no text."""
        shown = "" if self.stopped or end else self._taken(token)
        if self._raw is not None:
            self.offsets.append(self._places.next(self._raw(token), len(self._decoded)))
        return shown

    def end(self) -> str:
        """What was held back, when the answer ends."""
        whole = self._tokenizer.decode(self._tokens, skip_special_tokens=self._skip)
        text = self._cut(whole[len(self._decoded) :] if whole.startswith(self._decoded) else "")
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _taken(self, token: int) -> str:
        self._tokens.append(token)
        return self._cut(self._stream.step(self._tokenizer.backend_tokenizer, token) or "")

    def _cut(self, text: str) -> str:
        self._decoded += text
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        certain = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[certain:]
        return text[:certain]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
