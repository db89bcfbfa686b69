"""Tokens to text piece by piece: half characters, special tokens, stop strings."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.engine.text import AnswerText


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
