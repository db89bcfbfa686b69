"""Control tokens of a tokenizer, and text that spells them out.

transformers' own `sanitize_control_tokens` tokenizes such a text piece by piece, which puts spaces
into it (sentencepiece) and keeps its pieces from merging. Here it is tokenized whole, by the same
tokenizer with names for its control tokens that nobody can write.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from itertools import accumulate
from secrets import token_hex

from tokenizers import AddedToken, Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from workers.config.base import InputError

Offsets = Sequence[tuple[int, int]]
"""Where each token begins and ends in a text, in characters."""


class ControlTokens:
    """Special tokens, and others that the chat template writes around a turn. Not all that it may
    write: `<tool_call>` and the like are for people to write too."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, around: str) -> None:
        """`around`: a turn as the template writes it."""
        self._tokenizer = tokenizer
        self._added: dict[int, AddedToken] = tokenizer.added_tokens_decoder
        names = {*tokenizer.all_special_tokens, *(tokenizer.chat_control_tokens or ())}
        added = self._added.values()
        names |= {one.content for one in added if one.special or one.content in around}
        self._ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names if name.strip()}
        self._secret, self._alias_secret = token_hex(16), token_hex(16)
        any_of, secret = self._any_of(self._ids), self._secret
        self._spelled = re.compile(any_of)
        self._by_whom = re.compile(f"{secret}({any_of}){secret}|({any_of})|{secret}")
        self._quotation = re.compile(f"{secret}(?:{any_of}){secret}")

    def spelled_in(self, text: str) -> bool:
        """Whether the tokenizer would find one in the text."""
        if self._spelled.search(text):
            return True
        return self._folded is not None and bool(
            self._folded.search(self._tokenizer.backend_tokenizer.normalizer.normalize_str(text))
        )

    def quoted(self, text: str) -> str:
        """The text with a mark around each, by which `named` knows that people wrote it."""
        return self._spelled.sub(f"{self._secret}\\g<0>{self._secret}", text)

    def named(self, rendered: str) -> str:
        """A chat with quotations, for `text_ids`: what is not quoted are control tokens."""
        return self._by_whom.sub(self._written, rendered)

    def named_at(self, rendered: str) -> tuple[str, Callable[[int], int]]:
        """The same, and where a place in the chat comes to lie."""
        found = list(self._by_whom.finditer(rendered))
        stops = [one.end() for one in found]
        moved = [0, *accumulate(len(self._written(one)) - len(one[0]) for one in found)]
        return self.named(rendered), lambda at: at + moved[bisect_right(stops, at)]

    def _written(self, found: re.Match[str]) -> str:
        return self._alias(found[2]) if found[2] else found[1] or ""

    def masked(self, rendered: str) -> str:
        """A chat with other characters, as many, in place of its quotations."""
        return self._quotation.sub(lambda found: " " * len(found[0]), rendered)

    def text_ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of texts, none of them a control token. InputError where the tokenizer's model
        itself makes one out of the letters."""
        return [self._own(one.ids) for one in self._encodings(texts, offsets=False)]

    def text_ids_at(self, texts: Sequence[str]) -> list[tuple[tuple[int, ...], Offsets]]:
        """The same, and the characters of each token."""
        return [(self._own(one.ids), one.offsets) for one in self._encodings(texts, offsets=True)]

    def _encodings(self, texts: Sequence[str], *, offsets: bool) -> list[Encoding]:
        tokenizer, _ = self._renamed
        # By these calls alone other threads go on meanwhile.
        call = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
        return list(call(texts, add_special_tokens=False))

    def _own(self, ids: Sequence[int]) -> tuple[int, ...]:
        _, known = self._renamed
        forged = set(ids).intersection(self._ids.values()) - known.keys()
        if forged := forged - {self._tokenizer.unk_token_id}:
            name = self._tokenizer.convert_ids_to_tokens(min(forged))
            raise InputError(f"the base's tokenizer cannot read {name!r} as text: take it out")
        return tuple(known.get(one, one) for one in ids)

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer under the other names, and what its ids of added tokens really are. It
        shares the vocabulary, and so costs next to nothing."""
        if not self._tokenizer.is_fast:
            raise InputError("it spells out a control token, which a slow tokenizer cannot take")
        whole = self._tokenizer.backend_tokenizer
        other = Tokenizer(whole.model)
        other.normalizer, other.pre_tokenizer = whole.normalizer, whole.pre_tokenizer
        names = {
            index: self._alias(one.content) if one.content in self._ids else one.content
            for index, one in self._added.items()
        }
        other.add_tokens([_like(one, names[index]) for index, one in self._added.items()])
        given = other.get_added_tokens_decoder()
        own = {name: index for index, name in names.items()}
        return other, {index: own[token.content] for index, token in given.items()}

    @cached_property
    def _folded(self) -> re.Pattern[str] | None:
        """For tokens that are looked for in normalized text, where other letters spell them too."""
        if not self._tokenizer.is_fast or not self._tokenizer.backend_tokenizer.normalizer:
            return None
        fold = self._tokenizer.backend_tokenizer.normalizer.normalize_str
        names = [one.content for one in self._added.values() if one.normalized]
        names = [fold(name) for name in names if name in self._ids]
        return re.compile(self._any_of(names)) if names else None

    def _alias(self, name: str) -> str:
        """Of a secret that no template is given: one may tell those of the quotations."""
        return f"<{self._alias_secret}:{self._ids[name]}>"

    def _any_of(self, names: Collection[str]) -> str:
        """A pattern for these; some tokens are found only where no letter is beside them."""
        added = self._added.values()
        alone = {one.content for one in added if one.single_word}.intersection(names)
        patterns = [rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(alone)]
        return "|".join([_any_of({*names} - alone), *patterns])


def _any_of(names: Collection[str]) -> str:
    """A pattern for the longest of the names. They share their beginnings in it: of a list, each
    name would be tried at each `<`, and a text of nothing else take seconds."""
    tails: dict[str, set[str]] = {}
    for name in names:
        tails.setdefault(name[:1], set()).add(name[1:])
    longer = [re.escape(first) + _any_of(rest) for first, rest in sorted(tails.items()) if first]
    if not longer:
        return "" if names else "(?!)"
    ends = "?" if "" in tails else ""
    return f"(?:{'|'.join(longer)}){ends}" if len(tails) > 1 else longer[0]


def _like(token: AddedToken, name: str) -> AddedToken:
    """A token of another name that is found alike."""
    return AddedToken(
        name,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
    )
