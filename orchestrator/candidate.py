"""What is to be promoted, and what it is compared with others on."""

from dataclasses import dataclass

from orchestrator.cluster_spec import ClusterSpec
from orchestrator.gate import LOSS, Mode, judged_by
from orchestrator.records import Version
from orchestrator.registry import Registry
from orchestrator.storage import study_names
from orchestrator.study import Study
from workers.configuration import InputError


@dataclass(frozen=True)
class Candidate:
    """A version, and the metric that decides whether it is better."""

    version: Version
    metric: str
    mode: Mode

    @classmethod
    def of_study(
        cls, registry: Registry, place: ClusterSpec, study: str, trial: int | None
    ) -> "Candidate":
        """A trial's version, by the study's metric; of the best finished trial where none is
        named."""
        record = Study.open(place, study)
        return cls(registry.version(record.version(trial)), record.metric, record.mode)

    @classmethod
    def of_version(
        cls, registry: Registry, place: ClusterSpec, id: str, name: str, study: str | None = None
    ) -> "Candidate":
        """Any version that the registry has, whatever name or study it is of.

        It is compared as `study` compares, where one is named; else as the name's versions were
        so far; else, on a new name, as its own study does.
        """
        version = registry.version(id)
        judged = None if study else judged_by(registry.history(name))
        if judged is None and (study or version.study in study_names(place)):
            record = Study.open(place, study or version.study)
            judged = record.metric, record.mode
        return cls(version, *(judged or (LOSS, "min")))


def target(study: str, to: str | None, version: str | None, trial: int | None) -> str:
    """The name that is meant by `promote STUDY --to NAME`, or by `promote NAME --version …`.
    InputError where the words do not go together."""
    if version is not None and trial is not None:
        raise InputError("take one of --trial and --version")
    if version is None and to is None:
        raise InputError(
            f"--to is missing: promote {study} --to NAME takes a trial of the study {study}, "
            f"promote {study} --version ID a version to the name {study}"
        )
    return to or study
