"""What an endpoint serves, checked before anything starts."""

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.records import base_id
from orchestrator.registry import Registry
from workers.spec import InputError, ModelSpec, validated

if TYPE_CHECKING:
    from workers.adapter.manifest import Manifest

OWN = {"device": "auto", "attention": "sdpa", "activation_checkpointing": False}
"""Where and how the training ran says nothing about the machines that serve."""


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
    store_url: str, storage: str | Path, name: str | None, model: ModelSpec | None = None
) -> ServedBase:
    """Of `model`, or of the base model that `name`'s champion was trained on.

    Raises InputError where both are None, `name` has no champion, the model cannot be served here,
    its weights are not those that the champion was trained on, or requests know it by the id that
    is a name of the registry too.
    """
    with closing(Registry(store_url, storage)) as registry:
        base = _servable(model) if name is None else _base_of(registry, name, model)
        _check_own_id(registry, base)
    return ServedBase(base, store_url, Path(storage).resolve(), name)


def _base_of(registry: Registry, name: str, model: ModelSpec | None) -> ModelSpec:
    version = registry.resolve(name)
    reference, manifest = f"{name}@{version.id}", registry.manifest(version)
    base = _servable(model or _trained_base(reference, manifest))
    _check_same_base(reference, manifest, base)
    return base


def _check_own_id(registry: Registry, base: ModelSpec) -> None:
    id = base_id(base.path)
    if id in registry.names():
        raise InputError(
            f"serve: {id} is what requests call the base {base.path}, and a name that was promoted "
            "to: rename the base's folder"
        )


def _trained_base(reference: str, manifest: "Manifest") -> ModelSpec:
    trained = (manifest.spec or {}).get("model", {"path": manifest.base.path})
    return validated(ModelSpec, {**trained, **OWN}, f"{reference}: its base model")


def _servable(model: ModelSpec | None) -> ModelSpec:
    """The model by its whole path, if it is a folder: replicas run somewhere else."""
    from workers.model import check_base

    if model is None:
        raise InputError("serve: name a model of the registry, or a base model")
    folder = Path(model.path)
    if folder.is_dir():
        model = model.model_copy(update={"path": str(folder.resolve())})
    check_base(model)
    return model


def _check_same_base(reference: str, manifest: "Manifest", model: ModelSpec) -> None:
    """Refuse another base than the champion's, as far as this machine has its weights. Replicas
    refuse it too, but what they say then is in their logs."""
    from workers.adapter.digest import base_digest

    trained = manifest.base
    if not trained.digest or trained.path == model.path or not Path(model.path).is_dir():
        return
    if base_digest(model.path) != trained.digest:
        raise InputError(
            f"serve: {reference}: belongs to another base model, {trained.path}: the weights of "
            f"{model.path} differ"
        )
