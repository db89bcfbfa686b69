"""What an endpoint serves, checked before anything starts."""

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.registry.registry import Registry
from orchestrator.registry.trained_base import (
    check_same_base,
    checked_base,
    in_training,
    trained_base,
)
from workers.adapter.manifest import base_id
from workers.config.base import InputError
from workers.config.model import ModelSpec

if TYPE_CHECKING:
    from workers.adapter.manifest import Manifest


@dataclass(frozen=True)
class ServedBase:
    """A base model that an endpoint can serve, and the registry whose names it serves beside it.
    Only `served_base` makes it: it reads the weights, which takes its time."""

    model: ModelSpec
    """By its whole path."""
    store_url: str = field(repr=False)
    storage: Path
    """Folder of the registry's versions."""
    name: str | None
    """Which the endpoint must serve; None: whatever there is."""


def served_base(
    store_url: str,
    storage: str | Path,
    name: str | None,
    model: ModelSpec | None = None,
    at: str | None = None,
) -> ServedBase:
    """Of `model`, or of the base model that `name`'s champion was trained on; `at` is the folder
    where that is now, if it was moved.

    Raises InputError where both are None, `name` has no champion, the model cannot be served here,
    its weights are not those that the champion was trained on, or requests know it by the id that
    is a name of the registry too.
    """
    with closing(Registry(store_url, storage)) as registry:
        base = _named(model) if name is None else _base_of(registry, name, model, at)
        _check_own_id(registry, base)
    return ServedBase(base, store_url, Path(storage).resolve(), name)


def _named(model: ModelSpec | None) -> ModelSpec:
    if model is None:
        raise InputError("serve: name a model of the registry, or a base model")
    return checked_base(model)


def _base_of(registry: Registry, name: str, model: ModelSpec | None, at: str | None) -> ModelSpec:
    version = registry.resolve(name)
    reference, manifest = f"{name}@{version.id}", registry.manifest(version)
    if model is None:
        return trained_base(reference, manifest.base, in_training(reference, manifest), at)
    base = checked_base(model)
    _check_same(reference, manifest, base)
    return base


def _check_own_id(registry: Registry, base: ModelSpec) -> None:
    id = base_id(base.path)
    if id in registry.names():
        raise InputError(
            f"serve: {id} is what requests call the base {base.path}, and a name that was promoted "
            "to: rename the base's folder"
        )


def _check_same(reference: str, manifest: "Manifest", model: ModelSpec) -> None:
    """Refuse another base than the champion's, as far as this machine has its weights. Replicas
    refuse it too, but what they say then is in their logs."""
    if manifest.base.path != model.path and Path(model.path).is_dir():
        check_same_base(f"serve: {model.path}", reference, manifest.base, Path(model.path))
