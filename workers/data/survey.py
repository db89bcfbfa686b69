"""Looks at all rows before a run: what is wrong with one of them is said with its file and row."""

from dataclasses import dataclass

from workers.data.counts import RowCounts
from workers.data.encode import Encoder
from workers.data.store.token_store import Tell, TokenStore
from workers.data.streaming.windows import looked_at
from workers.data.task_metrics import check_fits


@dataclass(frozen=True)
class Survey:
    """Encodes all rows as a run would (of a stream the first ones), and keeps them in this node's
    store, where the run finds them. InputError for the first that is wrong, or where no row is
    left."""

    encoder: Encoder
    tell: Tell = lambda *_: None

    def training(self) -> RowCounts:
        """Of the rows to learn from; of a stream its first ones."""
        return looked_at(self.encoder, self.tell).counts

    def validation(self, rows_per_task: int | None = None) -> RowCounts:
        """Of the rows that trials are compared on, with their choices."""
        stored = TokenStore(self.encoder, self.tell).validation(rows_per_task)
        check_fits(stored.rows)
        return stored.counts
