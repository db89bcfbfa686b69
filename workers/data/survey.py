"""Looks at all rows before a run: what is wrong with one of them is said with its file and row."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest

from workers.data.counts import RowCounts
from workers.data.encode import Encoder
from workers.data.rows import Row, training_rows, validation_rows
from workers.data.task_metrics import check_fits

MOST = 200_000
"""Rows of one source that are encoded, which takes about two minutes."""
LONGEST = 1000
"""Of a sample, so many are the rows with the longest targets."""
_OFTEN = 256
"""Rows between two words on how far it is."""
Tell = Callable[[str, int, int], None]
"""Told which source, how many of its rows are encoded, and how many will be."""


@dataclass(frozen=True)
class Survey:
    """Encodes rows as a run would. Every row is read, and all are encoded unless there are more
    than `most`. InputError for the first that is wrong, or where no row is left."""

    encoder: Encoder
    tell: Tell = lambda *_: None
    most: int = MOST

    def training(self) -> RowCounts:
        """Of the rows to learn from."""
        data = self.encoder.data
        return self._counted(data.train_name, training_rows(data))

    def validation(self, rows_per_task: int | None = None) -> RowCounts:
        """Of the rows that trials are compared on, with their choices."""
        data = self.encoder.data
        rows = validation_rows(data, rows_per_task)
        check_fits(rows)
        return self._counted(data.validation_name, rows, scored=True)

    def _counted(self, source: str, rows: Sequence[Row], scored: bool = False) -> RowCounts:
        taken = _sample(rows, self.most)
        counts = RowCounts(source, sample_of=len(rows) if len(taken) < len(rows) else None)
        for _ in self.encoder.kept(self._told(taken, counts), counts, scored):
            pass
        return counts

    def _told(self, rows: Sequence[Row], counts: RowCounts) -> Iterator[Row]:
        for done, row in enumerate(rows):
            if done % _OFTEN == 0:
                self.tell(counts.source, done, len(rows))
            if self.encoder.spells_control(row):
                counts.spelled(row)
            yield row


def _sample(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """All rows; of very many, the longest targets and some from all over the source."""
    if len(rows) <= most:
        return rows
    longest = nlargest(LONGEST, range(len(rows)), key=lambda at: len(rows[at].target))
    return [rows[at] for at in sorted({*range(0, len(rows), -(-len(rows) // most)), *longest})]
