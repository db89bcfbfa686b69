"""Which tokens of an answer are told, when, and as far as they are shown."""

from orchestrator.openai.response import Told, chat_logprobs, text_logprobs
from workers.engine.request import Chunk, Finish, TokenText


def token(text: str, offset: int) -> TokenText:
    return TokenText(text, text.encode(), -1.0, offset=offset)


def chunk(text: str, *tokens: TokenText, finish: Finish | None = None) -> Chunk:
    return Chunk(text, (), 1, 1, finish, tokens)


def test_a_token_is_told_with_the_last_of_its_text() -> None:
    told = Told()
    assert [one.text for one in told.by(chunk("chic", token("chic", 0)))] == ["chic"]
    assert not told.by(chunk("ken ", token("ken ST", 4)))  # may be the beginning of STOP
    assert [one.text for one in told.by(chunk("STANDS", token("ANDS", 10)))] == ["ken ST", "ANDS"]


def test_a_stop_string_is_told_nowhere_and_cuts_the_token_that_it_begins_in() -> None:
    told = Told()
    told.by(chunk("chic", token("chic", 0)))
    told.by(chunk("ken ", token("ken ST", 4)))
    tokens = told.by(chunk("", token("OP.", 10), finish="stop"))
    assert [(one.text, one.raw, one.offset) for one in tokens] == [("ken ", b"ken ", 4)]


def test_an_answer_that_ends_by_its_length_tells_all() -> None:
    half = TokenText("�", b"\xe2", -1.0, offset=2)
    assert Told().by(chunk("ok�", token("ok", 0), half, finish="length"))[1] is half


def test_half_a_character_waits_for_the_others_and_is_told_as_it_is() -> None:
    parts = [TokenText("�", bytes([byte]), -1.0, offset=3) for byte in "✓".encode()]
    told = Told()
    told.by(chunk("ok ", token("ok ", 0)))
    assert [told.by(chunk("", one)) for one in parts[:2]] == [(), ()]
    tokens = told.by(chunk("✓", parts[2], finish="stop"))
    content = (chat_logprobs(tokens) or {})["content"]
    assert bytes(byte for one in content for byte in one["bytes"]).decode() == "✓"
    assert (text_logprobs(tokens) or {})["text_offset"] == [3, 3, 3]
