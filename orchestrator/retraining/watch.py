"""One look at a name, and what follows from it: nothing, a training, or a better version."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cluster.errors import ClusterError
from cluster.session import session
from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.job import JobSpec, load_job, override_job
from orchestrator.registry.models import Version
from orchestrator.registry.registry import Registry
from orchestrator.retraining.backends import End, Runs
from orchestrator.retraining.conclusion import ChampionChallenge, Outcome
from orchestrator.retraining.data import with_fresh
from orchestrator.retraining.journal import Entry, Journal, Kind
from orchestrator.retraining.policy import Policy
from orchestrator.retraining.signals import Signals
from workers.config.base import InputError, one_line
from workers.config.metrics import better_when, is_better, of_validation

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Watch:
    """Watches one name by a policy. All it remembers is in the journal."""

    name: str
    policy: Policy
    registry: Registry
    cluster: ClusterSpec
    """Where the studies and the registry lie."""
    signals: Signals
    runs: Runs
    address: str | None = None
    """Cluster for measuring what it has trained; None starts a local one for it."""

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return Path(self.cluster.storage).resolve() / "watch" / self.name

    @property
    def journal(self) -> Journal:
        """What it has seen and done."""
        return Journal(self.folder / "diary.jsonl")

    def look(self) -> str:
        """Look once, act, and say in one line what was seen or done. Raises InputError where that
        cannot be told: an endpoint that does not answer, say."""
        with self.journal.alone():
            return self._look()

    def _look(self) -> str:
        if running := self.journal.running():
            return self._follow(running)
        champion = self.registry.champion(self.name)
        if champion is None:
            raise InputError(f"{self.name}: has no champion to watch")
        why = self._drifted(champion) or self._worsened()
        if why is None:
            return f"{self.name}@{champion.id}: nothing to do"
        if held := self._held():
            return f"{why}; {held}"
        return self._train(why)

    def _drifted(self, champion: Version) -> str | None:
        rule = self.policy.when.drift
        verdict = self.signals.drift(champion.id) if rule else None
        if rule is None or verdict is None or verdict.sustained < rule.windows:
            return None
        return f"{verdict.sustained} windows in a row have drifted: {verdict.why}"

    def _worsened(self) -> str | None:
        rule, last = self.policy.when.quality, self.journal.last("measured")
        if rule is None or (last and _since(last) < timedelta(hours=rule.every_hours)):
            return None
        value = self.signals.quality(rule)
        worse = is_better(rule.limit, value, better_when(of_validation(rule.metric)) or "max")
        said = f"{rule.metric} is {value:.4g} on {rule.data}, the limit {rule.limit:.4g}"
        self.journal.note("measured", said, evidence={"metric": rule.metric, "value": value})
        return said if worse else None

    def _held(self) -> str | None:
        """Why nothing is trained now."""
        begun, cooldown = self.journal.begun(), timedelta(hours=self.policy.cooldown_hours)
        if begun and _since(last := begun[-1]) < cooldown:
            return f"trained {last.study} at {last.at:%Y-%m-%d %H:%M}, waits for the cooldown"
        if self.journal.begun_since(DAY) >= self.policy.max_per_day:
            return f"has trained {self.policy.max_per_day} times in 24 hours, which is the most"
        return None

    def _train(self, why: str) -> str:
        job = self._job()
        self.journal.note("submitted", why, study=job.name)
        try:
            self.runs.start(job)
        except Exception as error:
            kind: Kind = "unsent" if isinstance(error, ClusterError) else "failed"
            self.journal.note(kind, one_line(error), study=job.name)
            raise
        running = self.journal.running()
        assert running is not None, "it was noted a moment ago"
        return self._follow(running)

    def _job(self) -> JobSpec:
        """The policy's job under a new name, on its own rows and the fresh ones."""
        own = override_job(load_job(self.policy.job), self.policy.set, "set")
        name = f"{own.name[:40]}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        where = {"cluster.storage": self.cluster.storage, "cluster.store": self.cluster.store}
        job = override_job(own, {"name": name, **where}, f"job {own.name}")
        return with_fresh(job, self.policy.data, self.policy.min_rows, self.folder / name)

    def _follow(self, running: Entry) -> str:
        """Wait for a training's end, and conclude from it."""
        assert running.study is not None, "what was submitted is a study"
        end = self.runs.end(running.study)
        if end is None:
            return f"{running.study} runs since {running.at:%Y-%m-%d %H:%M}: {running.why}"
        outcome = self._outcome(running.study, end, running.why)
        self.journal.note(**vars(outcome), study=running.study)
        return f"{running.study}: {outcome.kind}: {outcome.why}"

    def _outcome(self, study: str, end: End, why: str) -> Outcome:
        if end.failed:
            return Outcome("failed", end.failed)
        try:
            challenge = ChampionChallenge.of(self.name, self.registry, self.cluster, study)
            with session(self.address):
                return challenge.conclude(self.policy, why)
        except InputError as error:
            return Outcome("failed", str(error))


def _since(entry: Entry) -> timedelta:
    return datetime.now(UTC) - entry.at
