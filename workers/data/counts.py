"""What encoding did to the rows of a source."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.epoch import Part
from workers.data.example import Example
from workers.data.rows import Row

_SUMS = (
    *("rows", "prompts_cut", "targets_cut", "skipped", "tokens", "target_tokens"),
    "control_tokens",
)
_FIRSTS = ("too_long", "control_row")


@dataclass
class RowCounts:
    """How many rows there are, and what `data.max_length` took from them."""

    source: str
    """What they were read from."""
    rows: int = 0
    """Rows that are kept."""
    prompts_cut: int = 0
    """Rows whose prompt lost its beginning."""
    targets_cut: int = 0
    """Rows whose target lost its end."""
    skipped: int = 0
    """Rows left out for their target's length."""
    too_long: str = ""
    """File and row of the first target that was too long."""
    longest: int = 0
    """Tokens of the longest row, before anything was taken from it."""
    longest_row: str = ""
    """Its file and row."""
    tokens: int = 0
    """Tokens that are kept."""
    target_tokens: int = 0
    """Those of them that the loss counts."""
    rows_of: list[int] = field(default_factory=list)
    """Rows that are kept of each of several sources, in the order of `data.train`."""
    layouts: dict[str, int] = field(default_factory=dict)
    """Rows by the layout that they were recognised by."""
    control_tokens: int = 0
    """Rows that spell out a control token, which is text there."""
    control_row: str = ""
    """File and row of the first of them."""

    @property
    def target_share(self) -> float:
        """Tokens that the loss counts, of all."""
        return self.target_tokens / self.tokens if self.tokens else 0.0

    def add(self, row: Row, example: Example) -> None:
        """Count a row that is kept, and what it lost."""
        prompt_lost, target_lost = example.lost
        self.rows += 1
        self.rows_of += [0] * (row.source + 1 - len(self.rows_of))
        self.rows_of[row.source] += 1
        if row.layout:
            self.layouts[row.layout] = self.layouts.get(row.layout, 0) + 1
        self.tokens += len(example)
        self.target_tokens += example.learned
        self.prompts_cut += prompt_lost > 0
        self.targets_cut += target_lost > 0
        if target_lost:
            self.too_long = self.too_long or row.where
        if (whole := len(example) + prompt_lost + target_lost) > self.longest:
            self.longest, self.longest_row = whole, row.where

    def skip(self, row: Row) -> None:
        """Count a row that is left out."""
        self.skipped += 1
        self.too_long = self.too_long or row.where

    def spelled(self, row: Row) -> None:
        """Count a row that spells out a control token."""
        self.control_tokens += 1
        self.control_row = self.control_row or row.where

    def merge(self, later: "RowCounts") -> None:
        """Add what was counted of the rows behind these."""
        if later.longest > self.longest:
            self.longest, self.longest_row = later.longest, later.longest_row
        pairs = zip_longest(self.rows_of, later.rows_of, fillvalue=0)
        self.rows_of = [ours + theirs for ours, theirs in pairs]
        self.layouts = dict(Counter(self.layouts) + Counter(later.layouts))
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        for name in _FIRSTS:
            setattr(self, name, getattr(self, name) or getattr(later, name))

    def check_left(self) -> None:
        """InputError where no row is kept."""
        if not self.rows:
            raise InputError(f"{self.source}: no row is left; {self.losses()}")

    def parts(self, data: DataSpec) -> list[Part]:
        """The kept rows by source, and how often they come; a stream's come as they are."""
        if data.streaming:
            return [Part(self.rows)]
        counted = zip(self.rows_of, data.sources, strict=False)
        return [Part(rows, source.weight) for rows, source in counted]

    def as_dict(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self) | {"target_share": self.target_share}

    def losses(self) -> str:
        """What is not learned as it was written, in words; empty where all is."""
        too_long = f" (the first: {self.too_long})" if self.too_long else ""
        parts = (
            (self.skipped, f"left out for their target's length{too_long}"),
            (self.targets_cut, f"lose the end of their target{too_long}"),
            (self.prompts_cut, "lose the beginning of their prompt"),
        )
        return ", ".join(f"{count} {what}" for count, what in parts if count)

    def __str__(self) -> str:
        """Two sentences."""
        spelled = (
            f"; {self.control_tokens} spell out a control token, which is text there (the first: "
            f"{self.control_row})"
        )
        layouts = "".join(
            f", {'' if count == self.rows else f'{count} '}read as {name}"
            for name, count in self.layouts.items()
        )
        return (
            f"{self.source}: {self.rows} rows{layouts}, {self.losses() or 'none is cut'}"
            f"{spelled if self.control_tokens else ''}. The longest has {self.longest} tokens "
            f"({self.longest_row}); targets are {self.target_share:.0%} of all tokens."
        )
