"""How much one forward pass of a worker holds. No torch."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class PassLimit:
    """At most; None: any number. One row is a pass, however long it is."""

    rows: int | None = None
    tokens: int | None = None
    """With the padding."""

    def held(self, rows: int, longest: int) -> int:
        """Of so many rows, the first of which is the longest: those that one pass takes."""
        if self.tokens is not None:
            return min(max(self.tokens // longest, 1), rows)
        return min(self.rows or rows, rows)

    def half_of(self, rows: int, longest: int) -> "PassLimit":
        """Half of a pass of so many rows of that length, counted as this is."""
        if self.tokens is not None:
            return PassLimit(tokens=rows * longest // 2)
        return PassLimit(rows=rows // 2)

    def as_dict(self) -> dict[str, int | None]:
        """For a checkpoint."""
        return asdict(self)

    def __str__(self) -> str:
        """`4 rows`, `1024 tokens`, `all rows`."""
        for count, what in ((self.tokens, "token"), (self.rows, "row")):
            if count is not None:
                return f"{count} {what}" if count == 1 else f"{count} {what}s"
        return "all rows"


NO_LIMIT = PassLimit()
