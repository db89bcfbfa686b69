"""The same rows on both sides: what is measured on them is learned by heart."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from workers.data.store.token_store import EncodedSource


@dataclass(frozen=True)
class SameRows:
    """Rows to be compared on that are learned from too."""

    rows: int
    of: int
    """Rows to be compared on in all."""
    first: str
    """File and row of the first of them."""

    def as_dict(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)

    def __str__(self) -> str:
        """One sentence."""
        return (
            f"{self.rows} of {self.of} validation rows are training rows too (the first: "
            f"{self.first}): what is measured on them may be learned by heart"
        )


def same_rows(train: EncodedSource, validation: EncodedSource) -> SameRows | None:
    """None where the sides have no row in common: the same turns and target."""
    keys = validation.examples.keys
    common = np.isin(keys, train.examples.keys).nonzero()[0]
    if not len(common):
        return None
    return SameRows(len(common), len(keys), validation.rows[int(common[0])].where)
