"""The text of a JSON document as it comes, a value at a time."""

from codecs import getincrementaldecoder
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any

from workers.config.base import InputError
from workers.data.sources.json_value import said_plainly
from workers.data.values import DECODER

LARGEST = 2**26
"""Characters of one value. A bracket that is never closed makes one of all that follows."""
_NEAR = 16
"""An error so close to the end of what is there may come of its being cut off there."""


class JsonStream:
    """What is read of it and not yet taken."""

    def __init__(self, path: str, blocks: Iterator[bytes]) -> None:
        self._path, self._blocks = path, blocks
        self._decoder = getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._all_read = "", 0, False

    def starts(self, *marks: str) -> bool:
        """Whether these marks come next, spaces aside."""
        at = self._at
        for mark in marks:
            at = self._after_space(at)
            if self._text[at : at + 1] != mark:
                return False
            at += 1
        return True

    def took(self, mark: str) -> bool:
        """Whether this mark came next; it is taken then."""
        if not self.starts(mark):
            return False
        self._at = self._after_space(self._at) + 1
        return True

    def take(self, mark: str, where: str) -> None:
        """This mark, which must come next."""
        if not self.took(mark):
            raise InputError(f"{where}: is no JSON: {mark!r} is missing before it")

    def ended(self) -> bool:
        """Whether nothing follows."""
        self._at = self._after_space(self._at)
        return self._at == len(self._text)

    def value(self, where: str) -> Any:
        """The value that comes next, read as far as it goes."""
        self._at = self._after_space(self._at)
        while True:
            try:
                value, self._at = said_plainly(self._parsed, where)
                return value
            except _CutOff:
                begun = len(self._text) - self._at
                if begun > LARGEST:
                    raise InputError(f"{where}: is longer than {LARGEST >> 20} MiB") from None
                self._read(begun)  # twice as much each time: a large value is tried a few times

    def _parsed(self) -> tuple[Any, int]:
        try:
            value, end = DECODER.raw_decode(self._text, self._at)
        except JSONDecodeError as error:
            goes_on = error.msg.startswith("Unterminated") and not self._all_read
            if goes_on or self._is_near(error.pos):
                raise _CutOff from None
            raise
        if isinstance(value, int | float) and self._is_near(end):  # its digits may go on
            raise _CutOff
        return value, end

    def _is_near(self, at: int) -> bool:
        """Whether what is wrong there may come of the text's being cut off."""
        return not self._all_read and at >= len(self._text) - _NEAR

    def _after_space(self, at: int) -> int:
        """Where the next mark is, or the end of all."""
        while True:
            while at < len(self._text) and self._text[at] in " \t\r\n":
                at += 1
            if at < len(self._text) or self._all_read:
                return at
            at -= self._read(1)

    def _read(self, fewest: int) -> int:
        """Read so much more, or all; what was taken goes. Returns how far the rest has moved."""
        taken, parts, length = self._at, [self._text[self._at :]], 0
        while length < fewest and not self._all_read:
            block = next(self._blocks, b"")
            self._all_read = not block
            try:
                parts.append(self._decoder.decode(block, final=self._all_read))
            except UnicodeDecodeError:
                raise InputError(f"{self._path}: is no UTF-8") from None
            length += len(parts[-1])
        self._text, self._at = "".join(parts), 0
        return taken


class _CutOff(Exception):  # noqa: N818 (no error: more is to be read)
    """A value goes on behind what is read."""
