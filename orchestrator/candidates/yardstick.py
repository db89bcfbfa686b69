"""What an adapter from elsewhere is measured by: a base, rows, an evaluation and a metric."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.job import JobSpec, override_job, portable
from orchestrator.registry.gate import judged_by
from orchestrator.registry.models import BASE, Version
from orchestrator.registry.registry import Registry
from orchestrator.registry.trained_base import trained_base
from orchestrator.tuning.storage import study_names
from orchestrator.tuning.study import Study
from search_spaces.spec import SearchSpec
from workers.adapter.manifest import Manifest
from workers.config.base import InputError, override, validated
from workers.config.data import ROWS_APART
from workers.config.metrics import Mode
from workers.config.train import TrainSpec

_FREE = ("samples", "batch_size")
"""Of an evaluation: what changes no figure."""


@dataclass(frozen=True)
class Yardstick:
    """How versions of a study, or of a name, were measured."""

    study: str
    """What is measured so is listed as this study's, with no trial."""
    spec: TrainSpec
    """Base, rows and evaluation, for one process."""
    metric: str
    mode: Mode
    search: SearchSpec
    """What an evaluation may take of a cluster, as a trial's worker does."""
    like: Manifest | None = None
    """Of a version that was measured so: it says what its rows and base were, and what that
    gave."""

    @classmethod
    def of_job(cls, job: JobSpec, base: str | None = None) -> "Yardstick":
        """As a job's trials would be; `base` is the folder where its base model is now."""
        moved = {"model.path": base} if base else {}
        job = portable(override_job(job, moved, "--base"))
        search = job.search
        return cls(job.name, _alone(job.train), search.metric, search.mode, search)

    @classmethod
    def of_study(
        cls, registry: Registry, place: ClusterSpec, study: str, base: str | None = None
    ) -> "Yardstick":
        """As its best trial was; `base` is the folder where its base model is now."""
        record = Study.open(place, study)
        best, judged = registry.version(record.version()), (record.metric, record.mode)
        return cls._like(place, best, registry.manifest(best), judged, base)

    @classmethod
    def of_name(
        cls, registry: Registry, place: ClusterSpec, name: str, base: str | None = None
    ) -> "Yardstick | None":
        """The same of the name's latest version that says how; None where none does."""
        events = registry.history(name)
        judged = judged_by(events)
        if judged is None:
            return None
        for id in dict.fromkeys(e.version for e in reversed(events) if e.version != BASE):
            version = _there(registry, id)
            manifest = registry.manifest(version) if version else None
            if version and manifest and manifest.asked_with:
                return cls._like(place, version, manifest, judged, base)
        return None

    @classmethod
    def _like(
        cls,
        place: ClusterSpec,
        version: Version,
        manifest: Manifest,
        judged: tuple[str, Mode],
        base: str | None,
    ) -> "Yardstick":
        study, reference = version.study, f"version {version.id}"
        known = validated(TrainSpec, manifest.asked_with, reference)
        model = trained_base(reference, manifest.base, known.model, base)
        spec = known.model_copy(update={"model": model})
        there = study in study_names(place)
        values = Study.open(place, study).job["search"] if there else {}
        search = validated(SearchSpec, values, f"study {study}")
        return cls(study, _alone(spec), *judged, search, manifest)

    def check(self) -> str:
        """Check base and rows as far as a driver can; returns the rows' digest. InputError."""
        from workers.data.encode import Encoder
        from workers.data.sources.records import data_digest
        from workers.data.survey import Survey
        from workers.models.base import check_base

        tokenizer, evaluation = check_base(self.spec.model), self.spec.evaluation
        Survey(Encoder(tokenizer, self.spec.data)).validation(evaluation.rows_per_task)
        now = data_digest(self.spec.data)
        before = self.like.data_digest if self.like else None
        if before not in (None, now):
            raise InputError(
                f"study {self.study}: its rows (data.train {self.spec.data.train_name}, "
                f"data.validation {self.spec.data.validation_name}) have changed since its "
                "versions were measured; undo that, or take others with --job FILE"
            )
        return now

    def measured_alike(self, manifest: Manifest) -> bool:
        """Whether a version was measured with the same base, by its digest where that is known
        here, and with the same rows and evaluation by their names."""
        if manifest.asked_with is None:
            return False
        try:  # an earlier moetune's has not the fields of today
            theirs = validated(TrainSpec, manifest.asked_with, "manifest").model_dump(mode="json")
        except InputError:
            return False
        mine = self.spec.model_dump(mode="json")
        if self.spec.model.dtype == "auto":  # its worker settled that
            mine["model"]["dtype"] = theirs["model"]["dtype"]
        known = self.like.base.digest if self.like else None
        same_base = known is not None and known == manifest.base.digest
        return _measures(mine, same_base) == _measures(theirs, same_base)


def _measures(spec: Mapping[str, Any], same_base: bool) -> dict[str, dict[str, Any]]:
    """What of a specification its figures depend on; but for the base's place where it is known to
    be the same."""
    place = ("path",) if same_base else ()
    free: dict[str, tuple[str, ...]] = {
        "model": place,
        "data": ROWS_APART,
        "evaluation": _FREE,
    }
    return {
        part: {field: value for field, value in spec.get(part, {}).items() if field not in left}
        for part, left in free.items()
    }


def _there(registry: Registry, id: str) -> Version | None:
    """None where it was lost or deleted."""
    with suppress(InputError):
        version = registry.version(id)
        registry.verify(version)
        return version
    return None


def _alone(spec: TrainSpec) -> TrainSpec:
    """In one process, which does not take more rows at once than one of the run's did."""
    changes: dict[str, object] = {
        "parallel": {},
        "evaluation.batch_size": spec.evaluated_at_once,
    }
    return override(spec, changes, "evaluation")
