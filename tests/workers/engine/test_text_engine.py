"""Tokens to text piece by piece: half characters, special tokens, stop strings; and where in the
text each token stands."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.orchestrator.replicas.echo_engine import EchoEngine
from tests.workers.data.chat_templates import QWEN
from workers.config.model import ModelSpec
from workers.engine.request import Chat, Chunk, Limits, TextRequest
from workers.engine.text_engine import AnswerText, TextEngine
from workers.engine.token_text import Offsets, TokenTexts


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, *stop: str) -> list[str]:
    answer = AnswerText(tokenizer, stop)
    shown = [answer.push(token) for token in tokenizer.encode(text)]
    return shown if answer.stopped else [*shown, answer.end()]


def test_pieces_are_whole_characters_and_join_to_the_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    shown = pieces(tokenizer, "grüß ✓ dich<|im_end|>")
    assert "".join(shown) == "grüß ✓ dich"
    assert not any("�" in piece for piece in shown)


def test_half_a_character_at_the_end_is_shown_as_it_decodes(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    answer = AnswerText(tokenizer)
    for token in tokenizer.encode("ok ✓")[:-1]:
        answer.push(token)
    assert answer.end().startswith("�")


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [
        (("stop",), "go on "),
        (("st", "stop"), "go on "),
        (("never", "on"), "go "),
        (("stopped",), "go on stop, then stand still"),
        (("g",), ""),
        (("ill",), "go on stop, then stand st"),
    ],
)
def test_a_stop_string_ends_the_text_before_it(
    tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], wanted: str
) -> None:
    assert "".join(pieces(tokenizer, "go on stop, then stand still", *stop)) == wanted


def test_no_piece_ever_shows_the_beginning_of_a_stop_string(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    shown = ""
    answer = AnswerText(tokenizer, ["END"])
    for token in tokenizer.encode("an E, an EN, an END and more"):
        shown += answer.push(token)
        assert not shown.endswith("END")
    assert shown == "an E, an EN, an "
    assert answer.stopped


def test_a_token_stands_where_the_character_with_its_first_byte_does(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    texts = TokenTexts(tokenizer)
    answer = AnswerText(tokenizer, ["STOP"], texts.raw)
    written = "grüß ✓<|im_start|>a�bSTOP and more"
    shown = "".join(answer.push(token) for token in tokenizer.encode(written))
    assert shown == "grüß ✓a�b"
    wanted = [0, 1, 2, 2, 3, 3, 4, 5, 5, 5, 6, 6, 7, 7, 7, 8, 9, 10, 11, 12]
    assert answer.offsets[: len(wanted)] == wanted
    assert min(answer.offsets[len(wanted) :]) > 8  # of the stop string and what is behind it


def test_characters_may_be_parted_among_tokens_in_any_way() -> None:
    """Against the places of all bytes, counted from the whole text."""
    draw = random.Random(3)
    for _ in range(300):
        text = "".join(draw.choices("aé✓🙂\n ", k=12))
        places = [at for at, character in enumerate(text) for _ in character.encode()]
        raw, offsets, begin = text.encode(), Offsets(), 0
        while begin < len(raw):
            end = begin + draw.randint(1, 5)
            whole = end >= len(raw) or places[end] != places[end - 1]
            decoded = len(raw[:end].decode()) if whole else 0
            assert offsets.next(raw[begin:end], decoded) == places[begin]
            begin = end


def test_bytes_that_are_no_text_are_characters_as_a_decoder_shows_them() -> None:
    raw = b"a\xff\xe2\xe2\x9cb\xc3"
    offsets = Offsets()
    assert [offsets.next(bytes([byte]), 0) for byte in raw] == [0, 1, 2, 3, 3, 4, 5]
    assert len(raw.decode(errors="replace")) == 6


def test_a_space_that_the_text_does_not_begin_with_moves_nothing() -> None:
    """SentencePiece's tokenizers drop it."""
    offsets = Offsets()
    assert [offsets.next(b" Hello", 5), offsets.next(b" you", 9)] == [0, 5]
    offsets = Offsets()
    assert [offsets.next(b" ", 0), offsets.next(b"1", 1), offsets.next(b"2", 2)] == [0, 0, 1]


def test_special_tokens_are_text_where_they_are_asked_for_but_for_the_end(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    texts = TokenTexts(tokenizer).with_special()
    ids = tokenizer.encode("é<|im_start|>✓{}<|im_end|>")
    for end in (tokenizer.convert_tokens_to_ids("<|im_end|>"), *tokenizer.encode("#")):
        answer = AnswerText(tokenizer, (), texts.raw, special=True)
        shown = answer.push_all([*ids[:-1], end], ended=True) + answer.end()
        assert shown == "é<|im_start|>✓{}"
        assert answer.offsets[:4] == [0, 0, 1, 1 + len("<|im_start|>")]
    assert b"".join(map(texts.raw, ids[:-1])).decode() == shown
    assert AnswerText(tokenizer).push_all(ids, ended=True) == "é✓{}"


@pytest.mark.parametrize(
    "tools", [(), ({"type": "function", "function": {"name": "f"}},)], ids=["none", "tools"]
)
def test_the_answer_to_a_chat_with_tools_has_its_special_tokens(
    tiny_model_dir: Path, tokenizer: PreTrainedTokenizerBase, tools: tuple[Any, ...]
) -> None:
    """The engine answers by the prompt read backwards, control tokens among it."""
    engine = EchoEngine(ModelSpec(path=str(tiny_model_dir), device="cpu"), Limits())
    engine.max_length = 4096
    engine.tokenizer.chat_template = QWEN
    prompt = Chat(({"role": "user", "content": "✓"},), tools)

    async def chunks() -> list[Chunk]:
        request = TextRequest(prompt, None, 0, logprobs=0, max_tokens=256)
        return [one async for one in TextEngine(engine, engine.tokenizer).generate(request)]

    shown = "".join(chunk.text for chunk in asyncio.run(chunks()))
    assert ("<|im_start|>" in shown, "<|im_end|>" in shown) == (bool(tools), bool(tools))
