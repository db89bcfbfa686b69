"""Tasks of EleutherAI's lm-eval: the base and an adapter of it, side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.evaluation.compare import BASE, evaluation, on_cluster
from workers.config.base import validated
from workers.train.evaluation.harness_spec import HarnessSpec

if TYPE_CHECKING:
    from orchestrator.registry.models import Version
    from orchestrator.registry.registry import Registry
    from workers.adapter.manifest import Manifest
    from workers.config.model import ModelSpec

COLUMNS = ("task", "metric", "rows", BASE)
Results = Mapping[str, Mapping[str, Any]]
"""By label, what `workers.train.evaluation.harness.run_harness` gives."""


@dataclass(frozen=True)
class HarnessRun:
    """What is measured, and on what."""

    label: str
    """NAME@VERSION, or the folder."""
    folder: Path
    spec: HarnessSpec
    version: "Version | None" = None
    """None for a folder: nothing is kept of it."""

    @classmethod
    def of_name(
        cls, registry: "Registry", reference: str, asked: Mapping[str, Any], base: str | None
    ) -> "HarnessRun":
        """A name's version; `base` is where its base model is now, if it was moved. InputError for
        what cannot be run, as far as it is known without a cluster."""
        from orchestrator.registry.trained_base import in_training, trained_base

        version = registry.resolve(reference)
        manifest = registry.manifest(version)
        name = f"{reference.partition('@')[0]}@{version.id}"
        model = trained_base(name, manifest.base, in_training(name, manifest), base)
        return cls(name, version.folder, _checked(asked, model, manifest), version)

    @classmethod
    def of_folder(cls, folder: Path, asked: Mapping[str, Any], base: str | None) -> "HarnessRun":
        """An adapter in a folder, ours or MixLoRA's or PEFT's."""
        from orchestrator.registry.exported import Exported
        from orchestrator.registry.trained_base import checked_base
        from workers.adapter.manifest import read_manifest

        chosen = Exported.of_folder(folder, base)
        model = chosen.model.model_copy(update={"quantization": chosen.trained_packed})
        spec = _checked(asked, checked_base(model), read_manifest(folder))
        return cls(chosen.name, folder.resolve(), spec)

    @property
    def asked(self) -> dict[str, Any]:
        """What is kept of what was asked."""
        asked = self.spec.model_dump(mode="json", exclude={"model", "chat_template"})
        return {"lm_eval": asked}

    def measure(self, gpus: float = 0, cpus: float = 1) -> Results:
        """The base's figures and the adapter's, on the connected cluster."""
        from workers.train.evaluation.harness import run_harness

        folders: dict[str, Path | None] = {BASE: None, self.label: self.folder}
        return on_cluster(run_harness, self.spec, folders, evaluation(cpus, gpus))


def _checked(
    asked: Mapping[str, Any], model: "ModelSpec", manifest: "Manifest | None"
) -> HarnessSpec:
    from workers.train.evaluation.harness import check_harness

    values = {
        **asked,
        "model": model.model_dump(mode="json"),
        "chat_template": manifest.chat_template if manifest else None,
    }
    spec = validated(HarnessSpec, values, "--lm-eval")
    check_harness(spec)
    return spec


def table(results: Results) -> list[list[Any]]:
    """One line a task and metric, as `COLUMNS` and the adapter's label say."""
    base, *_ = results.values()
    return [
        [task, metric, told["rows"], *(_shown(one, task, metric) for one in results.values())]
        for task, told in base["tasks"].items()
        for metric in told["metrics"]
    ]


def _shown(figures: Mapping[str, Any], task: str, metric: str) -> str | None:
    told = figures["tasks"][task]
    value, error = told["metrics"][metric], told["stderr"].get(metric)
    if value is None:
        return None
    return f"{value:.4g}" + (f" ± {error:.2g}" if error else "")
