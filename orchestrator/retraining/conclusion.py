"""What becomes of a training: its best version against the champion, on the same rows."""

from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.cluster import ClusterSpec
from orchestrator.evaluation.compare import compare
from orchestrator.registry.log import this_user
from orchestrator.registry.models import Version
from orchestrator.registry.plan import Stage, parse_plan
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.registry.router_gate import RouterGate
from orchestrator.retraining.journal import Kind
from orchestrator.retraining.policy import Policy
from orchestrator.tuning.study import Study
from workers.config.base import InputError, override, validated
from workers.config.metrics import is_better, value_at
from workers.config.train import TrainSpec


@dataclass(frozen=True)
class Outcome:
    """How a training ended, for the journal."""

    kind: Kind
    why: str
    version: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChampionChallenge:
    """A study's best version, and the champion that it may follow."""

    name: str
    registry: Registry
    study: Study
    candidate: Version
    champion: Version

    @classmethod
    def of(
        cls, name: str, registry: Registry, cluster: ClusterSpec, study: str
    ) -> "ChampionChallenge":
        """Raises InputError where no trial has finished, or the name has no champion by now."""
        record, champion = Study.open(cluster, study), registry.champion(name)
        if champion is None:
            raise InputError(f"{name}: has no champion any more")
        return cls(name, registry, record, registry.version(record.version()), champion)

    def conclude(self, policy: Policy, why: str) -> Outcome:
        """Propose the candidate, or start a canary of it as the policy says; keep the champion
        where that is no worse, or where the candidate's router has collapsed. Raises InputError."""
        evidence = self._measured()
        reasons = RouterGate().reasons(self.registry, self.candidate)
        reasons += self._no_better(evidence)
        id = self.candidate.id
        if reasons:
            return Outcome("kept", "; ".join(reasons), id, evidence)
        better = (
            f"{evidence['metric']} {evidence['candidate']:.4g} against {evidence['champion']:.4g} "
            f"of champion {self.champion.id} on the same rows, old and fresh"
        )
        if policy.action == "propose":
            command = (
                f"moetune promote {self.study.name} --to {self.name} --force --reason retrained"
            )
            said = f"{better}; promote it with: {command} [--canary 10%]"
            return Outcome("proposed", said, id, evidence)
        self._start_canary(policy, f"{why}; {better}")
        return Outcome("canary", f"{better}; gets {policy.canary}", id, evidence)

    def _measured(self) -> dict[str, Any]:
        """The study's metric of both on the study's validation rows. Measures the champion, on the
        connected cluster; the candidate was in its training."""
        trained = validated(TrainSpec, self.study.job["train"], f"study {self.study.name}")
        spec = override(trained, {"parallel": {}}, f"study {self.study.name}")
        metrics = compare(spec, {"champion": self.champion.folder}).results["champion"]
        return {
            "metric": self.study.metric,
            "mode": self.study.mode,
            "candidate": value_at(self.candidate.metrics, self.study.metric),
            "champion": value_at({"validation": metrics}, self.study.metric),
        }

    def _no_better(self, evidence: dict[str, Any]) -> list[str]:
        mine, theirs, metric = evidence["candidate"], evidence["champion"], evidence["metric"]
        if mine is None or theirs is None:
            return [f"{metric} is not known of both; take a validation metric for the study"]
        if is_better(mine, theirs, evidence["mode"]):
            return []
        return [f"its {metric} of {mine:.4g} is not better than {theirs:.4g} of the champion"]

    def _start_canary(self, policy: Policy, reason: str) -> None:
        # Forced, since the gate compares what was measured in training, and the champion's data
        # had no fresh rows. What it is there for was just done on the same rows.
        promote(
            self.registry,
            self.candidate,
            self.name,
            actor=f"watch of {this_user()}",
            metric=self.study.metric,
            mode=self.study.mode,
            reason=reason,
            force=True,
            stage=Stage(action="canary", plan=parse_plan(policy.canary)),
        )
