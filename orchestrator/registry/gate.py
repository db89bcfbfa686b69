"""The gate before a name: what a version must be like to become its champion."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.registry.models import Event, Version
from orchestrator.registry.registry import Registry
from workers.adapter.manifest import Manifest
from workers.config.base import InputError
from workers.config.metrics import VALIDATION_LOSS, Mode, is_better, value_at


def compare(
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
                "value": value_at(version.metrics, metric),
                "data_digest": (kept := _manifest(registry, version)) and kept.data_digest,
                **({"origin": Path(kept.origin.path).name} if kept and kept.origin else {}),
            }
    if champion is None:
        lineage = _manifest(registry, chosen)
        evidence["base"] = _base(lineage.base_metrics if lineage else {}, chosen, metric, mode)
    return evidence


def _base(theirs: Mapping[str, Any], chosen: Version, metric: str, mode: Mode) -> dict[str, Any]:
    """The bare base as a champion, by the study's metric; by the loss where it has no such one
    (balance, say). Its value is None where nobody measured it."""
    if theirs and value_at(theirs, metric) is None:
        metric, mode = VALIDATION_LOSS, "min"
    values = {"value": value_at(theirs, metric), "candidate": value_at(chosen.metrics, metric)}
    return {"metric": metric, "mode": mode, **values}


def _manifest(registry: Registry, version: Version) -> Manifest | None:
    """None for a champion whose folder is lost: that must not keep a better one out."""
    try:
        return registry.manifest(version)
    except InputError:
        return None


def metric_reasons(
    evidence: Mapping[str, Any], champion: Version | None, events: Sequence[Event]
) -> list[str]:
    """Why the candidate of `compare` is not shown to be better than the champion."""
    metric, mode = evidence["metric"], evidence["mode"]
    mine = evidence["candidate"]
    if mine["value"] is None:
        return [f"it has no metric {metric}"]
    if champion is None:
        return _unmeasured(mine, evidence["base"]) or _base_reasons(**evidence["base"])
    theirs = evidence["champion"]
    reasons = []
    judged = next(e for e in reversed(events) if e.version == champion.id and _was_judged(e))
    if (judged.evidence["metric"], judged.evidence["mode"]) != (metric, mode):
        was = f"{judged.evidence['mode']} {judged.evidence['metric']}"
        reasons.append(f"champion {champion.id} was judged by {was}, this one by {mode} {metric}")
    same_study = mine["study"] == theirs["study"]
    if mine["data_digest"] != theirs["data_digest"] or not (mine["data_digest"] or same_study):
        reasons.append(f"champion {champion.id} was measured on other data")
    if theirs["value"] is None:
        reasons.append(f"champion {champion.id} has no metric {metric}")
    elif not is_better(mine["value"], theirs["value"], mode):
        reasons.append(
            f"its {metric} of {mine['value']:.6g} is not better than "
            f"{theirs['value']:.6g} of champion {champion.id}"
        )
    return reasons


def _unmeasured(candidate: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Of what was trained elsewhere, nothing is believed that was not measured here."""
    if "origin" not in candidate or base["value"] is not None:
        return []
    return [f"it comes from {candidate['origin']}, and nobody has measured its base here"]


def _base_reasons(
    metric: str, mode: Mode, value: float | None, candidate: float | None
) -> list[str]:
    """Why the candidate is not shown to be better than the bare base, as far as that is known."""
    if value is None or (candidate is not None and is_better(candidate, value, mode)):
        return []
    mine = "unknown" if candidate is None else f"{candidate:.6g}"
    return [f"its {metric} of {mine} is not better than {value:.6g} of the bare base"]


def judged_by(events: Sequence[Event]) -> tuple[str, Mode] | None:
    """Metric and mode that a name's versions were last judged by; None where none was."""
    last = next((event for event in reversed(events) if _was_judged(event)), None)
    return (last.evidence["metric"], last.evidence["mode"]) if last else None


def _was_judged(event: Event) -> bool:
    """A shadow was compared only; and what ends or advances something holds other evidence."""
    return event.action in ("promote", "canary") and "metric" in event.evidence
