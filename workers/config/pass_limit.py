"""How much one forward pass of a worker holds. No torch."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class PassLimit:
    """At most; None: any number. One row is a pass, however long it is."""

    rows: int | None = None
    tokens: int | None = None
    """With the padding."""

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
