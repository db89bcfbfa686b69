"""What `moetune export` would answer of a version or a trial: said where one is chosen.

It asks configurations only, no weights, and loads no torch.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.registry.models import Version
from orchestrator.registry.registry import Registry
from orchestrator.registry.trained_base import in_training
from workers.adapter.config import read_config
from workers.adapter.stock.verdict import base_config, twin_of, why_not
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError, validated
from workers.config.model import ModelSpec


@dataclass(frozen=True)
class Exportable:
    """Whether an adapter can be an ordinary checkpoint."""

    architecture: str | None
    """The class that the checkpoint would be of; None where it cannot be one."""
    why_not: str | None
    """Why it cannot, and the nearest that can."""

    @classmethod
    def of(cls, adapter: AdapterSpec, model: ModelSpec) -> "Exportable | None":
        """An adapter of this shape; None where its base is not here to be asked."""
        base = base_config(model)
        if base is None:
            return None
        if reason := why_not(adapter, base):
            return cls(None, reason)
        twin = twin_of(adapter, base)
        return cls(twin.architecture if twin else _own(base), None)

    @classmethod
    def of_version(cls, registry: Registry, version: Version) -> "Exportable | None":
        """A version of the registry; None also where its files say too little."""
        try:
            manifest = registry.manifest(version)
            model = in_training(version.id, manifest)
            if manifest.spec:
                adapter = validated(AdapterSpec, manifest.spec["adapter"], version.id)
            else:
                config, _ = read_config(version.folder)
                adapter = config.spec(config.targets or "all-linear", config.r, version.id)
        except (InputError, KeyError):
            return None
        return cls.of(adapter, model)

    def said(self, reference: str, options: str = "") -> str:
        """After a version was chosen: how to export it, or why not. `options` say where it is."""
        if self.why_not:
            return f"it cannot be exported as an ordinary checkpoint: {self.why_not}"
        command = f"moetune export {reference} --to FOLDER{options}"
        return f"it can be exported as {self.architecture}: {command}"

    def as_dict(self) -> dict[str, str | None]:
        """Plain values, for JSON."""
        return asdict(self)


def told(trials: Iterable[tuple[int, Exportable | None]]) -> list[str]:
    """A line for all trials of the same answer; none for those that cannot be judged."""
    same: dict[Exportable, list[int]] = defaultdict(list)
    for number, answer in trials:
        if answer:
            same[answer].append(number)
    return [_line(answer, sorted(numbers)) for answer, numbers in same.items()]


def _line(answer: Exportable, numbers: list[int]) -> str:
    who = f"trial{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    if answer.why_not:
        return f"{who}: no export as an ordinary checkpoint: {answer.why_not}"
    return f"{who}: moetune export writes {answer.architecture}"


def _own(base: Mapping[str, Any]) -> str:
    """The base's own class, which plain LoRA stays in."""
    named = base.get("architectures") or [base.get("model_type", "its base's class")]
    return str(named[0])
