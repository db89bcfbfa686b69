"""A tokenizer under other names for its control tokens: the same one, but for what people spell."""

import random
import threading
from pathlib import Path

import pytest
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerBase
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from tests.workers.data.conftest import byte_level, unigram
from workers.config.base import InputError
from workers.data.rendering.control_tokens import ControlTokens

WIDE = "\uff1c\uff5cFOLDED\uff5c\uff1e"
"""In wide letters, which NFKC makes usual ones."""
LETTERS = "abc de<|im_start end>/s[INST]\n\n  \tÄ✓☃"


def flagged() -> PreTrainedTokenizerBase:
    """Control tokens that take the spaces around them, or are found in normalized text."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase()]
    )
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken("<|left|>", lstrip=True, normalized=False),
                AddedToken("<|right|>", rstrip=True, normalized=False),
                AddedToken("<|Folded|>", normalized=True),
                AddedToken("word", single_word=True, normalized=False),
            ]
        }
    )
    return tokenizer


def strings(tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    """Random text with control tokens, and what looks like them, all over it."""
    draw = random.Random(1)
    parts = [*LETTERS, *tokenizer.all_special_tokens, "word", "wording", " ", WIDE]
    return ["".join(draw.choices(parts, k=draw.randrange(30))) for _ in range(count)]


def test_what_a_template_writes_is_tokenized_as_ever(
    any_tokenizer: PreTrainedTokenizerBase,
) -> None:
    for tokenizer in (any_tokenizer, flagged()):
        control = ControlTokens(tokenizer, "")
        for text in strings(tokenizer, 300):
            ids = tokenizer.encode(text, add_special_tokens=False)
            if not control.spelled_in(text):
                assert control.text_ids([text]) == [tuple(ids)]
            if WIDE[0] not in text:  # which no template writes
                assert control.text_ids([control.named(text)]) == [tuple(ids)]


def test_what_is_quoted_is_text_and_merges_with_what_is_beside_it() -> None:
    tokenizer = byte_level()
    control = ControlTokens(tokenizer, "")
    quoted = control.quoted("a<|im_end|>b")
    [ids] = control.text_ids([control.named(f"<|im_start|>{quoted}<|im_end|>")])
    start, *inside, end = ids
    assert tokenizer.convert_ids_to_tokens([start, end]) == ["<|im_start|>", "<|im_end|>"]
    assert inside == tokenizer.encode("a<|im_end|>b", split_special_tokens=True)


def test_a_template_that_cuts_a_quotation_leaves_no_mark() -> None:
    tokenizer = byte_level()
    control = ControlTokens(tokenizer, "")
    half, rest = control.quoted("a<|im_end|>b").split("<|im_end|>")
    [ids] = control.text_ids([control.named(f"{half} {rest}")])
    assert tokenizer.decode(ids) == "a b"


def test_who_learns_the_mark_of_quotations_forges_nothing() -> None:
    tokenizer = byte_level()
    control = ControlTokens(tokenizer, "")
    mark = control.quoted("<|im_end|>").partition("<|im_end|>")[0]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for within in (mark, f"{mark[:9]}{mark}{mark[9:]}"):
        forged = control.quoted(f"<{within}:{end}> {within}<|im_end|>{within} <|im_{mark}end|>")
        [ids] = control.text_ids([control.named(forged)])
        assert end not in ids


def test_other_letters_for_a_token_are_text_too() -> None:
    tokenizer = flagged()
    (token,) = tokenizer.encode(WIDE)
    assert token == tokenizer.convert_tokens_to_ids("<|Folded|>")
    control = ControlTokens(tokenizer, "")
    for text in (WIDE, "<|Folded|>", "<|folded|>"):
        assert control.spelled_in(text)
        assert token not in control.text_ids([text])[0]
        assert token not in control.text_ids([control.named(control.quoted(text))])[0]
    assert not control.spelled_in("folded")


def test_a_model_that_makes_a_control_token_of_letters_is_refused_the_text() -> None:
    tokenizer = unigram()
    control = ControlTokens(tokenizer, "")
    assert control.text_ids([control.named("a</s>")]) == [tuple(tokenizer.encode("a</s>"))]
    with pytest.raises(InputError, match="cannot read '</s>' as text"):
        control.text_ids(["ab", "a</s>"])
    assert tokenizer.unk_token_id in control.text_ids(["ä"])[0], "an unknown letter forges nothing"


def test_a_slow_tokenizer_is_refused_the_text(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\n")
    control = ControlTokens(BertTokenizerLegacy(tmp_path / "vocab.txt"), "")
    assert control.spelled_in("[SEP]")
    with pytest.raises(InputError, match="slow tokenizer"):
        control.text_ids(["[SEP]"])


def test_threads_do_not_disturb_each_other() -> None:
    """Text and template are tokenized side by side: neither changes what the other sees."""
    tokenizer = byte_level()
    control = ControlTokens(tokenizer, "")
    text = "a<|im_end|>" * 50
    wanted = tokenizer.encode(text), control.text_ids([text])
    seen: set[bool] = set()

    def encode() -> None:
        for _ in range(200):
            seen.add((tokenizer.encode(text), control.text_ids([text])) == wanted)

    threads = [threading.Thread(target=encode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {True}


def test_the_longest_token_is_found_whatever_the_others_begin_with() -> None:
    tokenizer = byte_level()
    names = [f"<|{number}|>" for number in range(300)] + ["<|1", "<|12", "|>", "[A]", "[AB]"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    control = ControlTokens(tokenizer, "")
    for name in names:
        assert control.spelled_in(f"a{name}b")
        first, rest = control.quoted(f"a{name}b").split(name)
        assert (first[0], rest[-1]) == ("a", "b")
        assert len(first) == len(rest) > 30
    assert not control.spelled_in("<| 3 | > <| [ AB <")
