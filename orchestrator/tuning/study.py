"""Reading studies: Optuna's storage for trials and values, the trials' folders for their curves.

Nothing here starts Ray, and nothing writes.
"""

import difflib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.cluster import ClusterSpec
from orchestrator.registry.exportable import Exportable
from orchestrator.tuning.storage import storage, study_names
from workers.config.base import InputError, override, validated
from workers.config.metrics import BEST_STEP, STOPPED, Mode, rank, value_at
from workers.config.train import TrainSpec
from workers.run.record import Metrics, read_progress

if TYPE_CHECKING:
    import optuna

STATES = {
    "WAITING": "waiting",
    "RUNNING": "running",
    "COMPLETE": "finished",
    "PRUNED": "stopped",
    "FAIL": "failed",
}
"""Optuna's states, in the words that people see."""
ENDS = ("finished", "stopped", "failed")
"""Those in which a trial stays."""
SAME_AS = "same_as"
"""Note of a trial that was not trained: the number of the one with the same setting."""
COMES_FROM = "comes_from"
"""Note of a trial that was moved here from a study on other rows: its number there."""
TRAINED_ON = "longer"
"""Folder in a study's of the run that trained its best trial on."""


@dataclass(frozen=True)
class TrialRow:
    """One trial of a study, as a leaderboard shows it."""

    number: int
    state: str
    """waiting, running, finished, stopped (by ASHA) or failed."""
    value: float | None
    """The study's metric at the trial's end, with early stopping its best; of a stopped or running
    trial, its latest."""
    params: dict[str, Any]
    """What the trial was given, by dotted field: only what the space varies."""
    metrics: Metrics = field(repr=False)
    """The latest report, nested; of a finished trial, that of its adapter."""
    version: str | None
    """Its adapter's version in the registry, if it finished."""
    reason: str | None
    """Why it failed, or was not trained."""
    seconds: float | None
    """From start to end, also over a restart of the driver."""
    steps: int
    """Optimizer steps taken."""
    best_step: int | None = None
    """With early stopping, the step of the evaluation whose adapter a finished trial has."""
    stopped_early: bool = False
    """Whether it ended before its last step because it had got no better."""

    @property
    def remark(self) -> str | None:
        """What there is to say of its end."""
        if self.reason or self.best_step is None:
            return self.reason
        early = "stopped early; " if self.stopped_early else ""
        return f"{early}its best was at step {self.best_step}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def all_studies(cluster: ClusterSpec) -> "list[Study]":
    """The studies that moetune made there, by name."""
    found = []
    for name in study_names(cluster):
        with suppress(InputError):  # another program's
            found.append(Study.open(cluster, name))
    return found


@dataclass(frozen=True)
class Study:
    """A study that was begun, whether or not it runs or is finished."""

    name: str
    folder: Path
    """Where its trials write."""
    optuna: "optuna.Study"

    @classmethod
    def open(cls, cluster: ClusterSpec, name: str) -> "Study":
        """The study of this name; an InputError lists those there are."""
        import optuna

        with storage(cluster) as store:
            known = optuna.get_all_study_names(store)
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there is {_listed(known)}"
                raise InputError(f"study {name}: no such study in {cluster.storage}; {hint}")
            study = optuna.load_study(study_name=name, storage=store)
        if "job" not in study.user_attrs:
            raise InputError(f"study {name}: was not made by moetune")
        return cls(name, cluster.study_folder(name), study)

    @property
    def job(self) -> dict[str, Any]:
        """The resolved job, as plain values."""
        return dict(self.optuna.user_attrs["job"])

    @property
    def metric(self) -> str:
        """What trials are compared on, as a path into their reports."""
        return str(self.job["search"]["metric"])

    @property
    def mode(self) -> Mode:
        """Whether a smaller or a larger value is better."""
        return "min" if self.job["search"]["mode"] == "min" else "max"

    def leaderboard(self) -> list[TrialRow]:
        """Every trial: the finished ones best first, then the others by number."""
        metric, mode, varied = self.metric, self.mode, self.optuna.user_attrs["varied"]
        trials = self.optuna.get_trials(deepcopy=False)
        finished: list[TrialRow] = []
        others: list[TrialRow] = []
        for row in (self._row(trial, metric, varied) for trial in trials):
            done = row.state == "finished" and row.value is not None
            (finished if done else others).append(row)
        finished.sort(key=lambda row: (rank(row.value or 0.0, mode), row.number))
        return finished + others

    def best(self) -> TrialRow | None:
        """The best finished trial."""
        return best_row(self.leaderboard())

    def row(self, number: int) -> TrialRow:
        """One trial; InputError if there is none of this number."""
        rows = self.leaderboard()
        for row in rows:
            if row.number == number:
                return row
        raise InputError(f"study {self.name}: no trial {number}; it has 0 to {len(rows) - 1}")

    def version(self, number: int | None = None) -> str:
        """Id of a trial's version, of the best finished trial if no number is given."""
        row = self.best() if number is None else self.row(number)
        if row is None:
            raise InputError(f"study {self.name}: no trial has finished yet")
        if row.version is None:
            why = f": {row.reason}" if row.reason else ""
            raise InputError(
                f"study {self.name}: trial {row.number} has no version, it is {row.state}{why}"
            )
        return row.version

    def exportable(self, rows: Iterable[TrialRow]) -> dict[int, Exportable | None]:
        """Whether the adapters of these trials, by number, can be ordinary checkpoints; None where
        the base is not here to be asked. Those without a version are left out."""
        numbers = [row.number for row in rows if row.version]
        try:
            train = validated(TrainSpec, self.job["train"], self.name)
        except InputError:  # another version's job
            return dict.fromkeys(numbers)
        trials = self.optuna.get_trials(deepcopy=False)
        return {number: _exportable(train, trials[number]) for number in numbers}

    def progress(self, number: int) -> list[Metrics]:
        """All reports of a trial, in order."""
        return read_progress(self.folder / "trials" / trial_name(number))

    def _row(
        self, trial: "optuna.trial.FrozenTrial", metric: str, varied: Sequence[str]
    ) -> TrialRow:
        reports = self.progress(trial.user_attrs.get(SAME_AS, trial.number))
        latest = reports[-1] if reports else {}
        finished = trial.state.name == "COMPLETE"
        attributes = trial.user_attrs
        best_step = attributes.get(BEST_STEP) if finished else None
        own = (report for report in reports if report["step"] == best_step)
        values = attributes.get("values", {})
        return TrialRow(
            number=trial.number,
            state=STATES[trial.state.name],
            value=trial.value if finished else value_at(latest, metric),
            params={path: values[path] for path in varied if path in values},
            metrics=next(own, latest),
            version=attributes.get("version"),
            reason=attributes.get("reason"),
            seconds=trial.duration.total_seconds() if trial.duration else None,
            steps=int(latest.get("step", 0)),
            best_step=best_step,
            stopped_early=finished and attributes.get(STOPPED, False),
        )


def _exportable(train: TrainSpec, trial: "optuna.trial.FrozenTrial") -> Exportable | None:
    try:
        spec = override(train, trial.user_attrs.get("values", {}), trial_name(trial.number))
    except InputError:  # another version's job
        return None
    return Exportable.of(spec.adapter, spec.model)


def best_row(leaderboard: Sequence[TrialRow]) -> TrialRow | None:
    """The best finished trial."""
    first = next(iter(leaderboard), None)
    return first if first and first.state == "finished" else None


def best_of(
    trials: "Iterable[optuna.trial.FrozenTrial]", mode: str
) -> "optuna.trial.FrozenTrial | None":
    """The best finished one; of several alike the first."""
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    return min(finished, key=lambda t: (rank(t.value or 0.0, mode), t.number), default=None)


def trial_name(number: int) -> str:
    """Name of a trial's folder, and of its lineage: T000 for the first."""
    return f"T{number:03d}"


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)) or "none yet"
