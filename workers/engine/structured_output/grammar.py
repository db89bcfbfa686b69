"""JSON schemas as llguidance's grammars, within its own limits.

No torch: the process that tries schemas out needs the same.
"""

from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 25_000,
    "max_lexer_states": 25_000,
    "max_grammar_size": 100_000,
}
"""A half to a tenth of the library's: a token's mask within 8 ms, and 50 MB while an answer runs.
They do not bound how long `multipleOf` and patterns under `allOf` take."""


@dataclass(frozen=True)
class Vocabulary:
    """What answers are made of."""

    tokenizer: str
    """As its library, tokenizers, writes it."""
    columns: int
    """Of the model's logits."""
    stops: list[int]
    """Tokens that end an answer."""

    def made(self) -> LLTokenizer:
        """As llguidance knows it; takes a second, and lets no other thread run meanwhile.
        ValueError where it does not know the kind."""
        return LLTokenizer(self.tokenizer, n_vocab=self.columns, eos_token=self.stops)


def compiled(tokenizer: LLTokenizer, schema: str, stops: list[int]) -> LLMatcher:
    """What a schema, as JSON text, allows from an answer's first token on; ValueError says what is
    wrong with it."""
    grammar = LLMatcher.grammar_from_json_schema(
        schema,
        # As `json.dumps` writes. Where white space is free, a model may write nothing else to the
        # end.
        overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
    )
    limits = LLParserLimits(**LIMITS, verbose_errors=False)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    first = b"" if matcher.is_error() else matcher.compute_bitmask()
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    if not int.from_bytes(first, "little") & ~sum(1 << stop for stop in set(stops)):
        raise ValueError("no text fits the schema")
    return matcher
