"""What is to be promoted, and what it is compared with others on."""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.candidates.arrival import Arrival
from orchestrator.candidates.yardstick import Yardstick
from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.job import JobSpec
from orchestrator.registry.gate import judged_by
from orchestrator.registry.models import Version
from orchestrator.registry.promote import check_own_name
from orchestrator.registry.registry import Registry
from orchestrator.registry.rules import PREFIX
from orchestrator.tuning.storage import study_names
from orchestrator.tuning.study import Study
from workers.adapter.manifest import base_id
from workers.config.base import InputError
from workers.config.metrics import VALIDATION_LOSS, Mode


@dataclass(frozen=True)
class Candidate:
    """A version, and the metric that decides whether it is better."""

    version: Version
    metric: str
    mode: Mode


@dataclass(frozen=True)
class Wish:
    """The words of `moetune promote`: STUDY --to NAME [--trial N], or NAME --version ID|FOLDER.

    With both STUDY --to NAME and --version, the version is compared as the study compares.
    """

    first: str
    """STUDY, or the name where `to` is None."""
    to: str | None = None
    trial: int | None = None
    version: str | None = None
    job: str | None = None
    base: str | None = None
    """Where the base that a folder is measured beside is now, if it was moved."""

    @property
    def name(self) -> str:
        """The name to promote to."""
        return self.to or self.first

    def check(self) -> None:
        """InputError where the words do not go together."""
        if self.version is None and self.to is None:
            raise InputError(
                f"--to is missing: promote {self.first} --to NAME takes a trial of the study "
                f"{self.first}, promote {self.first} --version ID|FOLDER brings a version to the "
                f"name {self.first}"
            )
        if self.version is not None and self.trial is not None:
            raise InputError("take one of --trial and --version")
        if self.version == "":
            raise InputError("--version: is empty; give an id or a folder")
        if self.job is not None and (self.version is None or self._names_an_id()):
            raise InputError("--job says by what a FOLDER is measured: it wants --version FOLDER")
        if self.job is not None and self.to is not None:
            raise InputError(
                f"take one of {self.first} --to {self.to} and {self.to} --job {self.job}: each "
                "says by what the version is measured"
            )

    def candidate(
        self,
        registry: Registry,
        place: ClusterSpec,
        address: str | None = None,
        job: JobSpec | None = None,
    ) -> Candidate:
        """What is meant. A folder is measured on the cluster at `address` (None: a local one)
        unless it was before; as the trials of `job` are, where one is given."""
        if self.version is None:
            record = Study.open(place, self.first)
            version = registry.version(record.version(self.trial))
            return Candidate(version, record.metric, record.mode)
        if self._names_an_id():
            version = registry.version(self.version)
            return Candidate(version, *self._judged(registry, place, version))
        yardstick = self._yardstick(registry, place, job)
        check_own_name(self.name, base_id(yardstick.spec.model.path), self.version)
        version = Arrival(registry, Path(self.version), yardstick).version(address)
        return Candidate(version, yardstick.metric, yardstick.mode)

    @property
    def _study(self) -> str | None:
        return self.first if self.to else None

    def _names_an_id(self) -> bool:
        assert self.version is not None
        if PREFIX.fullmatch(self.version):
            return True
        if not Path(self.version).is_dir():
            raise InputError(
                f"--version {self.version}: is neither an id (4 to 64 hex digits) nor a folder"
            )
        return False

    def _judged(self, registry: Registry, place: ClusterSpec, version: Version) -> tuple[str, Mode]:
        """As the study compares, where one is named; else as the name's versions were so far; else,
        on a new name, as the version's own study does."""
        judged = None if self._study else judged_by(registry.history(self.name))
        if judged is None and (self._study or version.study in study_names(place)):
            record = Study.open(place, self._study or version.study)
            judged = record.metric, record.mode
        return judged or (VALIDATION_LOSS, "min")

    def _yardstick(self, registry: Registry, place: ClusterSpec, job: JobSpec | None) -> Yardstick:
        if job is not None:
            return Yardstick.of_job(job, self.base)
        if self._study is not None:
            return Yardstick.of_study(registry, place, self._study, self.base)
        found = Yardstick.of_name(registry, place, self.name, self.base)
        if found is None:
            raise InputError(
                f"{self.name}: has no version yet that says on which rows {self.version} is to be "
                "measured against the base; take a study's (moetune promote STUDY --to "
                f"{self.name} --version {self.version}) or a job's (--job FILE)"
            )
        return found
