"""What the runs of one model and data share: loaded and encoded once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from workers.adapter.digest import base_digest
from workers.adapter.manifest import BaseRecord
from workers.data.encode import Encoder, Example
from workers.data.rows import Row, training_rows, validation_rows
from workers.data.source import digest
from workers.model import Base, load_base
from workers.spec import TrainSpec


@dataclass(frozen=True)
class Inputs:
    """A frozen base model and the rows to learn from and to be compared on."""

    spec: TrainSpec
    """The specification that they were loaded for."""
    base: Base
    encoder: Encoder
    train: Sequence[Example]
    validation: Sequence[Row]

    @classmethod
    def load(cls, spec: TrainSpec, former: "Inputs | None" = None) -> "Inputs":
        """Load what `spec` names, and take over from `former` what is the same."""
        if former and former.key == key(spec):
            return former
        base = former.base if former and former.spec.model == spec.model else load_base(spec.model)
        encoder = Encoder(base.tokenizer, spec.data)
        train = [encoder.example(row) for row in training_rows(spec.data)]
        validation = validation_rows(spec.data, spec.evaluation.rows_per_task)
        return cls(spec, base, encoder, train, validation)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for runs that can share these inputs."""
        return key(self.spec)

    @cached_property
    def base_record(self) -> BaseRecord:
        """The base model's path and digest, for an adapter's lineage."""
        return BaseRecord(path=self.spec.model.path, digest=base_digest(self.base.model))

    @cached_property
    def data_digest(self) -> str:
        """Digest of both sources' content."""
        sources = (self.spec.data.train, self.spec.data.validation)
        return hashlib.sha256("".join(map(digest, sources)).encode()).hexdigest()


def key(spec: TrainSpec) -> tuple[object, ...]:
    """What of a specification decides about its inputs."""
    return spec.model, spec.data, spec.evaluation.rows_per_task
