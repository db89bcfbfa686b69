"""Promotion and rollback: who becomes the champion of a name, and on what evidence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from orchestrator.registry import Event, Registry, Version, check_name
from workers.adapter.config import read_config
from workers.spec import InputError

Mode = Literal["min", "max"]


class GateRefused(InputError):  # noqa: N818
    """The gate's answer; `reasons` lists all of them."""

    def __init__(self, name: str, version: Version, reasons: Sequence[str]) -> None:
        super().__init__(
            f"{name}: version {version.id} is not promoted: {'; '.join(reasons)} "
            "(override with --force --reason TEXT)"
        )
        self.reasons = list(reasons)


@dataclass(frozen=True)
class Gate:
    """What a version must be like to become the champion.

    A router has collapsed in a layer where the top_k busiest experts together get more than
    `max_top_share` of the routed tokens (the choice has become constant), or where more than
    `max_dead` of the experts get less than `dead_share` of an even share.
    """

    max_top_share: float = 0.95
    dead_share: float = 0.05
    max_dead: float = 0.5

    def router_reasons(self, registry: Registry, version: Version) -> list[str]:
        """Layers whose router has collapsed; also when none was measured. Plain LoRA has none."""
        config, _ = read_config(version.folder)
        if config.num_experts == 1:
            return []
        loads = registry.manifest(version).expert_load
        if not loads:
            return ["no expert load was recorded, so that the router cannot be checked"]
        top_k = config.top_k or 2
        return [r for layer, load in loads.items() for r in self._layer(layer, load, top_k)]

    def _layer(self, layer: str, load: Sequence[float], top_k: int) -> list[str]:
        total, experts = sum(load), len(load)
        if total <= 0:
            return [f"router of {layer} sent no token anywhere"]
        shares = sorted((share / total for share in load), reverse=True)
        reasons = []
        top = sum(shares[:top_k])
        if experts > top_k and top > self.max_top_share:
            reasons.append(f"router of {layer} gives {top_k} of {experts} experts {top:.1%}")
        dead = sum(share < self.dead_share / experts for share in shares)
        if dead > self.max_dead * experts:
            reasons.append(f"router of {layer} leaves {dead} of {experts} experts unused")
        return reasons


def metric_value(metrics: Mapping[str, Any], name: str) -> float | None:
    """The number under `validation/loss`, in nested or flat metrics; None where there is none."""
    place: Any = metrics
    if name not in metrics:
        for part in name.split("/"):
            place = place.get(part) if isinstance(place, Mapping) else None
    else:
        place = metrics[name]
    number = isinstance(place, int | float) and not isinstance(place, bool)
    return float(place) if number else None


def promote(  # noqa: PLR0913
    registry: Registry,
    version: str | Version,
    to: str,
    *,
    actor: str,
    metric: str,
    mode: Mode = "min",
    reason: str = "",
    force: bool = False,
    gate: Gate | None = None,
) -> Event:
    """Make a version the champion of a name, or raise `GateRefused` with every reason.

    `metric` and `mode` are the study's (`SearchSpec`). `force` overrides the gate, wants a reason
    and leaves what it overrode in the event's evidence. When somebody else promotes in the same
    moment, the version is judged again, against the new champion.
    """
    chosen = registry.version(version) if isinstance(version, str) else version
    if force and not reason.strip():
        raise InputError(f"{to}: a forced promotion needs a reason")
    registry.verify(chosen)
    router = (gate or Gate()).router_reasons(registry, chosen)

    def decide(events: list[Event]) -> tuple[str, str, dict[str, Any]]:
        champion = registry.version(events[-1].version) if events else None
        if champion and champion.id == chosen.id:
            raise InputError(f"{to}: version {chosen.id} is its champion already")
        evidence = _compare(registry, chosen, champion, metric, mode)
        reasons = _metric_reasons(evidence, champion, events) + router
        if reasons and not force:
            raise GateRefused(to, chosen, reasons)
        overridden = {"forced": bool(reasons), "reasons": reasons}
        return chosen.id, reason.strip() or "passed the gate", {**evidence, **overridden}

    return _append(registry, to, "promote", actor, decide)


def rollback(registry: Registry, name: str, *, actor: str, reason: str = "") -> Event:
    """Go back to the champion before this one.

    Rolling back again goes further back: a version that was rolled back from is not returned to
    except by promoting it anew. After promotions A, B, C, two rollbacks lead to B and to A; a
    promotion of D then, rolled back, leads to A.
    """

    def decide(events: list[Event]) -> tuple[str, str, dict[str, Any]]:
        if not events:
            raise InputError(f"{name}: nothing was promoted to this name")
        line = standing(events)
        if len(line) == 1:
            raise InputError(f"{name}: there is no earlier champion to go back to")
        return line[-2], reason.strip() or "rolled back", {}

    return _append(registry, name, "rollback", actor, decide)


def standing(events: Sequence[Event]) -> list[str]:
    """The champions that rollbacks would return to, oldest first, the present one last."""
    line: list[str] = []
    for event in events:
        if event.action == "promote":
            line.append(event.version)
        else:
            line.pop()
    return line


def _append(
    registry: Registry,
    name: str,
    action: Literal["promote", "rollback"],
    actor: str,
    decide: Callable[[list[Event]], tuple[str, str, dict[str, Any]]],
) -> Event:
    """Decide on the log as it stands and append; decide again when it has moved meanwhile.

    Ends: every round that loses is one that somebody else has won.
    """
    check_name(name, "name")
    if not actor.strip() or len(actor) > 200:
        raise InputError(f"{name}: an actor of 1 to 200 characters is needed")
    while True:
        events = registry.history(name)
        version, reason, evidence = decide(events)
        event = Event(
            name=name,
            revision=len(events) + 1,
            action=action,
            version=version,
            previous=events[-1].version if events else None,
            actor=actor.strip(),
            reason=reason,
            evidence=evidence,
            at=datetime.now(UTC),
        )
        if registry.append(event):
            return event


def _compare(
    registry: Registry, chosen: Version, champion: Version | None, metric: str, mode: Mode
) -> dict[str, Any]:
    """What the decision rests on, as it goes into the log."""
    evidence: dict[str, Any] = {"metric": metric, "mode": mode}
    for role, version in (("candidate", chosen), ("champion", champion)):
        if version is not None:
            evidence[role] = {
                "version": version.id,
                "study": version.study,
                "trial": version.trial,
                "value": metric_value(version.metrics, metric),
                "data_digest": _data_digest(registry, version),
            }
    return evidence


def _data_digest(registry: Registry, version: Version) -> str | None:
    """None also for a champion whose folder is lost: that must not keep a better one out."""
    try:
        return registry.manifest(version).data_digest
    except InputError:
        return None


def _metric_reasons(
    evidence: Mapping[str, Any], champion: Version | None, events: Sequence[Event]
) -> list[str]:
    metric, mode = evidence["metric"], evidence["mode"]
    mine = evidence["candidate"]
    if mine["value"] is None:
        return [f"it has no metric {metric}"]
    if champion is None:
        return []
    theirs = evidence["champion"]
    reasons = []
    judged = next(e for e in reversed(events) if e.version == champion.id and e.evidence)
    if (judged.evidence["metric"], judged.evidence["mode"]) != (metric, mode):
        was = f"{judged.evidence['mode']} {judged.evidence['metric']}"
        reasons.append(f"champion {champion.id} was judged by {was}, this one by {mode} {metric}")
    same_study = mine["study"] == theirs["study"]
    if mine["data_digest"] != theirs["data_digest"] or not (mine["data_digest"] or same_study):
        reasons.append(f"champion {champion.id} was measured on other data")
    if theirs["value"] is None:
        reasons.append(f"champion {champion.id} has no metric {metric}")
    elif not (
        mine["value"] < theirs["value"] if mode == "min" else mine["value"] > theirs["value"]
    ):
        reasons.append(
            f"its {metric} of {mine['value']:.6g} is not better than "
            f"{theirs['value']:.6g} of champion {champion.id}"
        )
    return reasons


def _better(mine: float, theirs: float, mode: Mode) -> bool:
    return mine < theirs if mode == "min" else mine > theirs
