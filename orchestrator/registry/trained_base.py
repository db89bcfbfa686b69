"""The base model that a version was trained on: known by its digest, wherever it lies by now."""

from pathlib import Path
from typing import TYPE_CHECKING

from workers.config.base import InputError, validated
from workers.config.model import ModelSpec

if TYPE_CHECKING:
    from workers.adapter.manifest import BaseRecord, Manifest

ELSEWHERE = "--base PATH says where it is now"
OWN = {
    "device": "auto",
    "attention": "sdpa",
    "activation_checkpointing": False,
    "compile": False,
}
"""Where and how the training ran says nothing about other machines."""


def in_training(reference: str, manifest: "Manifest") -> ModelSpec:
    """The base as the version was trained on it, but for what was that machine's own."""
    trained = (manifest.asked_with or {}).get("model", {"path": manifest.base.path})
    return validated(ModelSpec, {**trained, **OWN}, f"{reference}: its base model")


def trained_base(
    reference: str, record: "BaseRecord", trained: ModelSpec, at: str | None = None
) -> ModelSpec:
    """`trained`, checked (`check_base`) and by its whole path: at the folder `at` (`--base`), or
    where it was in training.

    Raises InputError where it is not there any more, and for a folder whose weights are not those
    that the version was trained on.
    """
    if at is None:
        return _where_it_was(reference, record, trained)
    if not Path(at).is_dir():
        raise InputError(f"--base {at}: there is no such folder")
    check_same_base(f"--base {at}", reference, record, Path(at))
    return checked_base(trained.model_copy(update={"path": at, "revision": None}))


def check_same_base(where: str, reference: str, record: "BaseRecord", folder: Path) -> None:
    """InputError for a folder with other weights than those of the version's base, as far as their
    digest was noted (not in adapters from elsewhere)."""
    from workers.adapter.digest import base_digest

    if record.digest and base_digest(folder) != record.digest:
        raise InputError(
            f"{where}: is another base model than {record.name}, which {reference} was trained on: "
            "the weights differ"
        )


def _where_it_was(reference: str, record: "BaseRecord", trained: ModelSpec) -> ModelSpec:
    try:
        return checked_base(trained)
    except InputError as error:
        raise moved(reference, record, trained, error) from None


def moved(
    reference: str, record: "BaseRecord", trained: ModelSpec, error: InputError
) -> InputError:
    """`error`, where the base lies where it was; else how to say where it is now."""
    if Path(trained.path).is_dir():
        return error
    gone = f"its base model {record.name} is not at {trained.path} any more"
    why = gone if Path(trained.path).is_absolute() else str(error)
    return InputError(f"{reference}: {why}; {ELSEWHERE}")


def checked_base(model: ModelSpec) -> ModelSpec:
    """By its whole path, if it is a folder: other processes may run somewhere else."""
    from workers.models.base import check_base

    folder = Path(model.path)
    if folder.is_dir():
        model = model.model_copy(update={"path": str(folder.resolve())})
    check_base(model)
    return model
