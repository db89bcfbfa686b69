"""What the runs of one model and data share: loaded and encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from workers.adapter.digest import base_digest
from workers.adapter.manifest import BaseRecord
from workers.config.row_metrics import check_metric
from workers.config.train import TrainSpec
from workers.data.counts import RowCounts
from workers.data.encode import Encoder
from workers.data.epoch import Part
from workers.data.example import Example
from workers.data.rows import Row
from workers.data.sources.records import SourceDigests, data_digest
from workers.data.store.arrow import StoredExamples
from workers.data.store.same_rows import SameRows, same_rows
from workers.data.store.token_store import EncodedSource, Tell, TokenStore
from workers.models.base import Base, load_base
from workers.models.device import settled
from workers.train.used import UsedInputs, inputs_key

TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Inputs:
    """A frozen base model, and the rows to learn from and to be compared on, read at first use."""

    spec: TrainSpec
    """The specification that they were loaded for, its precision settled."""
    base: Base
    encoder: Encoder
    _rows: dict[str, EncodedSource] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(cls, spec: TrainSpec, former: "Inputs | None" = None) -> "Inputs":
        """Load what `spec` names, or take it over from `former` where it is the same. Of one that
        could not encode its rows only the base is: its digests may be of files that have changed
        since."""
        spec = spec.with_model(settled(spec.model))
        for metric in spec.data.metrics.values():  # which this node may lack
            check_metric(metric, "data.metrics")
        if former and former._encoded and inputs_key(former.spec) == inputs_key(spec):
            return former
        same = former if former and former.spec.model == spec.model else None
        base = same.base if same else load_base(spec.model, spec.parallel)
        inputs = cls(spec, base, Encoder(base.tokenizer, spec.data))
        _ = inputs.data_digest  # before the rows are read, not at a checkpoint hours later
        return inputs

    def encode(self, tell: Tell = lambda *_: None) -> None:
        """Have the rows encoded, by this worker or by another one of this node; of a stream only
        those to be compared on. `tell` is called again and again meanwhile."""
        for which in (VALIDATION,) if self.spec.data.streaming else (TRAIN, VALIDATION):
            self._stored(which, tell)

    @property
    def _encoded(self) -> bool:
        """Of a stream never: whether its files are the same is asked again."""
        return {TRAIN, VALIDATION} <= self._rows.keys()

    @cached_property
    def train(self) -> StoredExamples:
        """The encoded rows to learn from, without those that are left out."""
        return self._stored(TRAIN).examples

    @cached_property
    def train_counts(self) -> RowCounts:
        """What encoding did to the rows to learn from."""
        return self._stored(TRAIN).counts

    @property
    def parts(self) -> Sequence[Part]:
        """How many of those are of each source, one source after another, and how often they
        come."""
        return self.train_counts.parts(self.spec.data)

    @cached_property
    def validation(self) -> Sequence[Row]:
        """The rows to be compared on."""
        return self._stored(VALIDATION).rows

    @cached_property
    def validation_examples(self) -> Sequence[Example]:
        """The same rows, encoded."""
        return self._stored(VALIDATION).examples

    @cached_property
    def validation_counts(self) -> RowCounts:
        """What encoding did to those."""
        return self._stored(VALIDATION).counts

    def _stored(self, which: str, tell: Tell = lambda *_: None) -> EncodedSource:
        if which not in self._rows:
            store = TokenStore(self.encoder, tell, self.digests.contents)
            some = self.spec.evaluation.rows_per_task
            self._rows[which] = store.training() if which == TRAIN else store.validation(some)
        return self._rows[which]

    @property
    def same_rows(self) -> SameRows | None:
        """Rows to be compared on that are learned from too; of a stream nobody knows."""
        if self.spec.data.streaming:
            return None
        return same_rows(self._stored(TRAIN), self._stored(VALIDATION))

    @property
    def pad_token_id(self) -> int:
        """What fills up a batch."""
        return int(self.base.tokenizer.pad_token_id)

    @cached_property
    def base_record(self) -> BaseRecord:
        """The base model's path and digest, for an adapter's lineage."""
        return BaseRecord(path=self.spec.model.path, digest=base_digest(self.base.model))

    @cached_property
    def data_digest(self) -> str:
        """Digest of both sources' content."""
        return data_digest(self.spec.data, self.digests)

    @cached_property
    def digests(self) -> SourceDigests:
        """Of each source, taken once: what a run learns is what its lineage says."""
        return SourceDigests.of(self.spec.data)

    @property
    def used(self) -> UsedInputs:
        """Rows and base, as a study's trials must share them."""
        assert self.base_record.digest, "taken of the loaded model"
        return UsedInputs(data=self.data_digest, base=self.base_record.digest)
